"""What a valid configuration does that its words do not say: warnings, not problems."""

from lhtrain.conf.schema import Attention, Config


def all_dense(config: Config) -> bool:
    """Whether model.dense_layers leaves no layer to a stage's Lighthouse Attention."""
    n_layers = config.model.n_layers
    dense = {layer % n_layers for layer in config.model.dense_layers}
    return len(dense) == n_layers


def notes(config: Config) -> list[str]:
    """A sentence for each."""
    lighthouse = [name for name, stage in config.stages.items() if stage.attention is Attention.lighthouse]
    if lighthouse and all_dense(config):
        layers = f"model.dense_layers={config.model.dense_layers} holds all {config.model.n_layers} layers"
        return [f"{layers}: every layer has full attention in stage {', '.join(lighthouse)} too"]
    return []
