"""Rules on how a step is computed."""

import importlib.util
from collections.abc import Iterator

from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import Config, Precision, Recompute

FLOAT8_MULTIPLE = 16  # the hardware's float8 products need both sizes of a matrix to be multiples of this


def compute_problems(config: Config) -> Iterator[Problem]:
    """Yield problems of offloading and float8 together with other settings."""
    compute, model = config.compute, config.model
    if compute.offload and compute.recompute is not Recompute.full:
        rule = "needs compute.recompute=full, because it offloads the block inputs that are kept there"
        yield Problem("compute.offload", True, rule)
    if not compute.float8:
        return
    if importlib.util.find_spec("torchao") is None:
        yield Problem("compute.float8", True, "needs the package: pip install 'lhtrain[float8]'")
    if compute.precision is Precision.float32:
        yield Problem("compute.float8", True, "needs compute.precision=bfloat16, or auto on a GPU")
    sizes = {"model.dim": model.dim, "model.ffn_dim": model.ffn_dim}
    sizes |= {"model.n_heads * head_dim": model.n_heads * model.head_dim}
    sizes |= {"model.n_kv_heads * head_dim": model.n_kv_heads * model.head_dim}
    for key, size in sizes.items():
        if size % FLOAT8_MULTIPLE:
            yield Problem(key, size, f"must be a multiple of {FLOAT8_MULTIPLE} for compute.float8=true")
