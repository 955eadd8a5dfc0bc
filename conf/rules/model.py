"""Rules on the model's shape."""

from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.rope_scaling import broken_rules
from lhtrain.conf.schema import Config


def model_problems(config: Config) -> Iterator[Problem]:
    """Yield problems of sizes that do not fit together, and of layers that do not exist."""
    model = config.model
    if not model.name.strip():
        yield Problem("model.name", model.name, "must not be empty")
    if model.n_kv_heads > 0 and model.n_heads % model.n_kv_heads:
        rule = f"must be a multiple of model.n_kv_heads={model.n_kv_heads}"
        yield Problem("model.n_heads", model.n_heads, rule)
    if model.n_heads > 0 and model.head_dim == model.dim // model.n_heads and model.dim % model.n_heads:
        rule = f"must be a multiple of model.n_heads={model.n_heads}, or set model.head_dim"
        yield Problem("model.dim", model.dim, rule)
    elif model.head_dim % 2:
        rule = "must be even, because the rotary embedding rotates pairs"
        yield Problem("model.head_dim", model.head_dim, rule)
    for rule in broken_rules(model.rope_scaling):
        yield Problem("model.rope_scaling", model.rope_scaling, rule)
    if isinstance(model.rope_scaling, dict) and model.head_dim < 4:
        yield Problem("model.head_dim", model.head_dim, "must be at least 4 with model.rope_scaling")
    if isinstance(model.rope_scaling, dict) and model.rope_theta <= 1:
        yield Problem("model.rope_theta", model.rope_theta, "must be above 1 with model.rope_scaling")
    yield from _dense_layers(config)


def _dense_layers(config: Config) -> Iterator[Problem]:
    """Check the dense_layers of the model, and those of stages that have their own."""
    n_layers = config.model.n_layers
    users = {"model.dense_layers": config.model.dense_layers}  # key -> its value
    lighthouse: dict[str, str] = {}  # key -> the first Lighthouse stage that uses it
    for name, stage in config.stages.items():
        is_own = stage.dense_layers != config.model.dense_layers
        key = f"stages.{name}.dense_layers" if is_own else "model.dense_layers"
        users[key] = stage.dense_layers
        if stage.attention == "lighthouse":
            lighthouse.setdefault(key, name)
    for key, layers in users.items():
        for layer in layers:
            if not -n_layers <= layer < n_layers:
                yield Problem(key, layers, f"there is no layer {layer}: model.n_layers={n_layers}")
        if n_layers >= 1 and key in lighthouse and len({layer % n_layers for layer in layers}) == n_layers:
            rule = f"names every layer, so stage {lighthouse[key]} has no layer with Lighthouse Attention; "
            rule += "name fewer, such as [0], or use full attention in the stage (attention=dense)"
            yield Problem(key, layers, rule)
