"""Rules on the model's shape."""

from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.rope_scaling import broken_rules
from lhtrain.conf.schema import Config, ModelConfig
from lhtrain.conf.sliding import layers_of_pattern, sliding_layers


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
    yield from _sliding_layers(config)


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
        if n_layers < 1:
            continue
        named, sliding = {layer % n_layers for layer in layers}, set(sliding_layers(config.model))
        if both := sorted(named & sliding):
            others = [layer for layer in range(n_layers) if layer not in sliding]
            rule = f"layer {both[0]} attends to the sliding window; name global layers, some of {others}"
            yield Problem(key, layers, rule)
        elif key in lighthouse and sliding and len(named | sliding) == n_layers:
            rule = f"leaves no layer for Lighthouse Attention in stage {lighthouse[key]}: {len(sliding)} of "
            rule += f"{n_layers} layers attend to the sliding window; use full attention in the stage "
            rule += "(attention=dense), or the window in fewer layers"
            yield Problem(*((key, layers) if named else _sliding_setting(config.model)), rule)
        elif key in lighthouse and len(named) == n_layers:
            rule = f"names every layer, so stage {lighthouse[key]} has no layer with Lighthouse Attention; "
            rule += "name fewer, such as [0], or use full attention in the stage (attention=dense)"
            yield Problem(key, layers, rule)


def _sliding_setting(model: ModelConfig) -> tuple[str, object]:
    """Return the setting that names the sliding layers, and its value."""
    if model.sliding_layers:
        return "model.sliding_layers", model.sliding_layers
    return "model.sliding_window_pattern", model.sliding_window_pattern


def _sliding_layers(config: Config) -> Iterator[Problem]:
    """Check the layers that attend to a sliding window."""
    model = config.model
    layers, every, window = model.sliding_layers, model.sliding_window_pattern, model.sliding_window
    for layer in layers:
        if not -model.n_layers <= layer < model.n_layers:
            rule = f"there is no layer {layer}: model.n_layers={model.n_layers}"
            yield Problem("model.sliding_layers", layers, rule)
    if window is None and (layers or every is not None):
        key, value = ("sliding_layers", layers) if layers else ("sliding_window_pattern", every)
        yield Problem(f"model.{key}", value, "needs model.sliding_window, the number of tokens of the window")
    if window is not None and not layers and every is None:
        rule = "needs model.sliding_window_pattern=N (every N-th layer is global), or model.sliding_layers"
        yield Problem("model.sliding_window", window, rule)
    both = window is not None and layers and every is not None and every >= 2 and model.n_layers >= 1
    if both and set(sliding_layers(model)) != layers_of_pattern(model):
        rule = f"contradicts model.sliding_layers={layers}; set one of them, and the other to null or []"
        yield Problem("model.sliding_window_pattern", every, rule)
