"""The layers of a model that attend to a sliding window."""

from lhtrain.conf.schema import ModelConfig


def sliding_layers(model: ModelConfig) -> list[int]:
    """Return the numbers of these layers from 0, in rising order; [] if all layers are global.

    They are those that model.sliding_layers names, or follow from model.sliding_window_pattern. The numbers
    of layers that do not exist are left out.
    """
    if model.sliding_window is None:
        return []
    n_layers = model.n_layers
    named = {layer % n_layers for layer in model.sliding_layers if -n_layers <= layer < n_layers}
    return sorted(named or layers_of_pattern(model))


def layers_of_pattern(model: ModelConfig) -> set[int]:
    """Return the layers that model.sliding_window_pattern makes sliding: all but every n-th one."""
    every = model.sliding_window_pattern
    return set() if every is None else {layer for layer in range(model.n_layers) if (layer + 1) % every}
