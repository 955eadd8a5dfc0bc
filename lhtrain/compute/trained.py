"""What a stage trains: how many weights, and how far down the backward pass goes."""

from collections.abc import Collection
from math import prod

from lhtrain.conf.parameters import Shape, chosen, count, shapes
from lhtrain.conf.schema import Config, ModelConfig
from lhtrain.registry import OPTIMIZERS
from lhtrain.stage import always_frozen


class Trained:
    """The parameters that a stage trains. frozen: its patterns of those that it does not train."""

    def __init__(self, model: ModelConfig, frozen: Collection[str]):
        self.model, self.shapes = model, shapes(model)
        self.names = self.shapes.keys() - chosen(frozen, self.shapes)
        first = [int(name.split(".")[1]) for name in self.names if name.startswith("blocks.")]
        self.first_block = 0 if self.embedding else min(first, default=model.n_layers)

    @property
    def weights(self) -> int:
        """Number of trained weights."""
        return count(self.names, self.shapes)

    @property
    def embedding(self) -> bool:
        """Whether the embedding is trained."""
        return "embedding.weight" in self.names

    @property
    def head(self) -> bool:
        """Whether the output head is trained; a tied one is the embedding."""
        return self.embedding if self.model.tie_embeddings else "head.weight" in self.names

    def share_of_block(self, number: int) -> float:
        """Return the share of the weights of block `number` that is trained."""
        names = [name for name in self.shapes if name.startswith(f"blocks.{number}.")]
        return count(self.names.intersection(names), self.shapes) / count(names, self.shapes)

    def products(self) -> tuple[int, set[int]]:
        """Return what a backward pass multiplies every token with, and the layers whose attention it enters.

        The first is a number of weights: each matrix counts once if its gradient is needed, and once if that
        of its input is.
        """
        total, layers, reached = 0, set(), self.embedding
        for number in range(self.model.n_layers):
            block = f"blocks.{number}."
            # Groups of parameters in the order of the forward pass; matrices of a group have the same input.
            inputs = [f"attention.{name}" for name in ("wq", "wk", "wv", "q_norm", "k_norm")]
            for group in (["attention_norm"], inputs, ["attention.wo"], ["ffn_norm"], ["ffn.gate", "ffn.up"]):
                total, reached = self._through([block + name for name in group], total, reached)
                if group is inputs and reached:
                    layers.add(number)
            total, reached = self._through([f"{block}ffn.down"], total, reached)
        _, reached = self._through(["norm"], total, reached)
        return total + self.model.vocab_size * self.model.dim * (reached + self.head), layers

    def _through(self, modules: list[str], total: int, reached: bool) -> tuple[int, bool]:
        """Add the products of modules with one input; reached: whether the gradient of that is needed."""
        names = [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
        for name in names:
            shape: Shape = self.shapes.get(name, ())
            if len(shape) == 2:
                total += shape[0] * shape[1] * (reached + (name in self.names))
        return total, reached or not self.names.isdisjoint(names)


def state_bytes(config: Config) -> int:
    """Return the bytes of the optimizer state of all ranks together, with the average of the weights.

    A parameter that some stage trains has its state in all stages. The average is float32 (optim.ema).
    """
    average = 0 if config.optim.ema is None else 4 * sum(map(prod, shapes(config.model).values()))
    return average + _moments(config)


def _moments(config: Config) -> int:
    """Return the bytes of the state that the optimizer itself keeps."""
    of, kind, frozen = shapes(config.model), OPTIMIZERS[config.optim.kind], always_frozen(config)
    if not hasattr(kind, "state_bytes_of"):
        return count(of.keys() - frozen, of) * kind.state_bytes
    each = {name: kind.state_bytes_of(name, shape, config.optim) for name, shape in of.items()}
    return round(sum(each[name] * prod(shape) for name, shape in of.items() if name not in frozen))
