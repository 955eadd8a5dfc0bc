"""Predicts the speed of a stage on any number of GPUs, and what limits it."""

from dataclasses import dataclass

from lhtrain.compute.links import Links, Transfer, traffic
from lhtrain.compute.rates import LINK_LIMITS, NETWORK, NODE, SLOWEST, Rates
from lhtrain.compute.step_time import StepTime, step_time
from lhtrain.conf.schema import Config
from lhtrain.stage import Stage


@dataclass(frozen=True)
class Prediction:
    """The predicted step of a stage.

    compute: of a GPU. exposed: seconds that the GPUs' transfers add, most of them over `link`. seconds: of
    the step. tokens_per_second: of all GPUs. transfers: bytes that a GPU receives in a step.
    """

    compute: StepTime
    exposed: float
    link: str  # NVLink or network
    seconds: float
    tokens_per_second: float
    transfers: Transfer

    def share(self, seconds: float) -> float:
        return seconds / self.seconds

    def limit(self) -> str:
        """Return what takes the most time: a link, if it adds LINK_LIMITS of a step, else a part of it."""
        if self.share(self.exposed) > LINK_LIMITS:
            return self.link
        compute = self.compute
        if compute.total == compute.host:
            return "host"
        parts = {"attention": compute.attention, "products": compute.products, "bandwidth": compute.memory}
        parts["kernels"] = compute.graph
        return max(parts, key=lambda name: parts[name])


def predict(
    config: Config,
    stage: Stage,
    rates: Rates,
    n_ranks: int = 1,
    network: float = NETWORK,
    node: int = NODE,
    kernel: str = "",
    share: float = 1.0,
) -> Prediction:
    """Return the predicted step of `stage`.

    Args:
        config: a filled configuration.
        stage: one of its stages.
        rates: those of the GPU.
        n_ranks: number of GPUs.
        network: bytes/s that each GPU receives from other machines.
        node: GPUs of a machine.
        kernel, share: as in `step_time`.
    """
    compute = step_time(config, stage, rates, n_ranks, kernel, share)
    moved = traffic(config, stage, n_ranks, Links(rates.nvlink, network, node))
    exposed, link = moved.exposed(*_passes(compute))
    seconds = compute.total * (SLOWEST if n_ranks > 1 else 1) + exposed
    return Prediction(compute, exposed, link, seconds, stage.batch_tokens / seconds, moved.total)


def _passes(compute: StepTime) -> tuple[float, float, float]:
    """Return the seconds beside which transfers can run: forward pass, backward pass, attention.

    The forward pass is a third of a step. With recomputation the backward pass takes longer and the forward
    pass is less; transfers that need the difference are rare.
    """
    return compute.total / 3, compute.total * 2 / 3, compute.attention
