"""Ways to share a run among GPUs, each with its memory and its predicted speed."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

from lhtrain.compute.fill import filled
from lhtrain.compute.memory import estimate
from lhtrain.compute.prediction import Prediction, predict
from lhtrain.compute.rates import NETWORK, NODE, Rates
from lhtrain.conf.rules.batch import batch_problems
from lhtrain.conf.rules.parallel import parallel_problems
from lhtrain.conf.schema import Config
from lhtrain.stage import stages_of

MOST_CP = 64  # largest parallel.cp that is tried


@dataclass(frozen=True)
class Hardware:
    """GPUs: their rates and bytes of memory, bytes/s of the network for each, GPUs of a machine."""

    rates: Rates
    memory: int
    network: float = NETWORK
    node: int = NODE


@dataclass(frozen=True)
class Shared:
    """A run on a number of GPUs. config: filled, with the sizes of its mesh. stages: predicted, by name."""

    config: Config
    n_ranks: int
    peak: int  # bytes, of the stage that needs most
    fits: bool
    stages: dict[str, Prediction]

    @property
    def seconds(self) -> float:
        """Predicted seconds of all steps."""
        counts = (stage.steps or 0 for stage in self.config.stages.values())
        return sum(n * one.seconds for n, one in zip(counts, self.stages.values(), strict=True))

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return sum((stage.steps or 0) * int(stage.batch_tokens) for stage in self.config.stages.values())

    def mesh(self) -> str:
        """Return the sizes of the mesh that are not 1, as KEY=VALUE without `parallel.`."""
        parallel = self.config.parallel
        sizes = {key: getattr(parallel, key) for key in ("dp_replicate", "dp_shard", "cp")}
        return " ".join(f"{key}={size}" for key, size in sizes.items() if size > 1) or "1 GPU"


def shared(config: Config, n_ranks: int, hardware: Hardware) -> Shared:
    """Return the memory and predicted speed of a filled configuration with the sizes of its mesh."""
    stages = stages_of(config)
    predicted = {
        name: predict(config, stage, hardware.rates, n_ranks, hardware.network, hardware.node)
        for name, stage in stages.items()
    }
    peak = max(estimate(config, stage, n_ranks).total for stage in stages.values())
    return Shared(config, n_ranks, peak, peak < hardware.memory, predicted)


def meshes(config: Config, n_ranks: int, hardware: Hardware) -> list[Shared]:
    """Return the meshes of `n_ranks` GPUs that a valid configuration allows, with FSDP over all first.

    config: valid, not filled; its `parallel` sizes are replaced.
    """
    out = []
    for replicate, cp in _sizes(n_ranks, hardware.node):
        other = deepcopy(config)
        other.parallel.dp_replicate, other.parallel.cp = replicate, cp
        other.parallel.dp_shard = n_ranks // (replicate * cp)
        if not [*parallel_problems(other, n_ranks), *batch_problems(other, n_ranks)]:
            out.append(shared(filled(other, n_ranks, hardware.memory), n_ranks, hardware))
    return out


def best(found: list[Shared]) -> Shared | None:
    """Return the mesh that is predicted to take the least time per token, among those that fit.

    If none fits: the one with the lowest peak; None if `found` is empty.
    """
    fitting = [one for one in found if one.fits]
    if fitting:
        return min(fitting, key=lambda one: one.seconds / max(one.tokens, 1))
    return min(found, key=lambda one: one.peak, default=None)


def _sizes(n_ranks: int, node: int) -> Iterator[tuple[int, int]]:
    """Yield dp_replicate and cp: 1, then 1 for each machine; sequences shared by 1 to MOST_CP."""
    machines = n_ranks // node if n_ranks % node == 0 else 1
    for replicate in dict.fromkeys((1, machines)):
        cp = 1
        while cp <= MOST_CP and n_ranks % (replicate * cp) == 0:
            yield replicate, cp
            cp *= 2
