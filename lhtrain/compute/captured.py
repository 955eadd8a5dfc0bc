"""Which micro-batches run as CUDA graphs (compute.cuda_graph). No torch: estimates use it too."""

from lhtrain.conf.schema import ComputeConfig, CudaGraph
from lhtrain.stage import Stage

MOST_TOKENS = 32_768  # of a micro-batch, for auto: with more, the host is faster than the GPU


def obstacle(compute: ComputeConfig, n_ranks: int, on_gpu: bool = True) -> str | None:
    """Return why no micro-batch of a run can be a graph; None if nothing is known to prevent it."""
    if not on_gpu:
        return "the run is not on a GPU"
    if n_ranks > 1:
        return "several ranks share the run"
    if compute.offload:
        return "compute.offload copies to the host in each pass"
    if compute.float8:
        return "compute.float8 is not tested with graphs"
    return None


def most_tokens(compute: ComputeConfig, n_ranks: int, on_gpu: bool = True) -> float:
    """Return the number of tokens up to which a micro-batch is a graph; 0: no micro-batch is."""
    if compute.cuda_graph is CudaGraph.off or obstacle(compute, n_ranks, on_gpu):
        return 0
    return MOST_TOKENS if compute.cuda_graph is CudaGraph.auto else float("inf")


def is_captured(stage: Stage, compute: ComputeConfig, n_ranks: int, on_gpu: bool = True) -> bool:
    """Return whether the micro-batches of a stage are to run as graphs."""
    return stage.batch_tokens / stage.grad_accum <= most_tokens(compute, n_ranks, on_gpu)
