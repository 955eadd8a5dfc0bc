"""Compile every kernel to a Hopper binary: compile_for_hopper.py L,p,R,D. Prints one line a kernel."""

import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lhtrain.kernels.merge import kernel as merge
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.ranges import kernel as ranges
from lhtrain.kernels.scores.kernel import LAUNCH, score_kernel
from lhtrain.kernels.selection.kernel import LAUNCH as SELECT_LAUNCH
from lhtrain.kernels.selection.kernel import select_kernel
from lhtrain.kernels.shapes import blocks
from lhtrain.kernels.windows.kernel import (
    ROWS_BLOCK,
    ROWS_LAUNCH,
    TOKENS_LAUNCH,
    long_rows_kernel,
    rows_from_tokens_kernel,
    tokens_from_rows_kernel,
)

ROWS_LSE = ("p_rows_lse", "p_grad_rows_lse")
INTEGERS = ("p_places", "p_indices", "p_scratch", "p_lo", "p_hi", "p_first", "p_last", "p_before", "p_starts")
TYPES = dict.fromkeys(INTEGERS, "*i32") | dict.fromkeys(
    ("p_qk", "p_kq", "p_lse", "p_delta", *ROWS_LSE), "*fp32"
)
TYPES["scale"] = "fp32"
COUNTS = ("n_blocks", "n_tiles", "n_level", "n_queries", "n_keys", "n_batch", "scale")  # of no known divisor


def compile_kernel(fn, constants, num_warps=4):
    signature, attributes = {}, {}
    for i, name in enumerate(fn.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = TYPES.get(name, "*bf16" if name.startswith("p_") else "i32")
        if name not in COUNTS:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    ptx = kernel.asm["ptx"]
    local = len(re.findall(r"(?:ld|st)\.local", ptx))
    wide = len(re.findall(r"(?:ld|st)\.global\.v4", ptx))
    print(fn.__name__, "shared", kernel.metadata.shared, "16-byte accesses", wide, "local", local)


def main(levels: int, pooling: int, group: int, dim: int) -> None:
    pyramid = Pyramid(2**20, levels, pooling, 1024).check()
    common = {"H": 8 * group, "G": 8, "P": pooling, "LEVELS": levels}
    all_slots = common | {"N_SLOTS": 8 * group + 16}
    q_slots = common | {"G": 8, "N_SLOTS": 8 * group}
    rows = blocks(pyramid, dim, **ROWS_BLOCK) | {"CHUNK": ROWS_LAUNCH["CHUNK"]}
    size = {"D": dim, "BLOCK_D": rows["BLOCK_D"]}
    compile_kernel(score_kernel, common | size | {"BLOCK_T": LAUNCH["BLOCK_T"]})
    compile_kernel(
        select_kernel,
        {"HEADS": group, "LEVELS": levels, "P": pooling, "EXPANDED": 128, "BLOCK": 1024},
        num_warps=SELECT_LAUNCH["num_warps"],
    )
    pooled = {"SHIFTED": False, "HAS_STARTS": False}
    shifted = {"SHIFTED": True, "HAS_STARTS": True, "BY_GROUP": False}
    for by_group in (False, True):
        compile_kernel(rows_from_tokens_kernel, all_slots | rows | pooled | {"BY_GROUP": by_group})
    compile_kernel(rows_from_tokens_kernel, q_slots | rows | shifted)
    tokens = size | {"BLOCK_T": TOKENS_LAUNCH["BLOCK_T"]}
    added = pooled | {"BY_GROUP": True, "ADD": True}
    compile_kernel(tokens_from_rows_kernel, all_slots | tokens | added)
    compile_kernel(tokens_from_rows_kernel, q_slots | tokens | shifted | {"ADD": False})
    long = {"H": 8, "G": 8, "BLOCK_T": 64, "D": dim, "BLOCK_D": size["BLOCK_D"]}
    compile_kernel(long_rows_kernel, long | shifted)
    merged = common | size | {"HAS_BEFORE": True, "HAS_STARTS": True, "BY_GROUP": True}
    compile_kernel(merge.merge_kernel, merged | {"BLOCK_T": merge.TOKENS_LAUNCH["BLOCK_T"]}, num_warps=2)
    for level in range(levels):
        constants = merged | {"LEVEL": level, "BLOCK_E": merge.ROWS_LAUNCH["BLOCK_E"]}
        compile_kernel(merge.merge_backward_kernel, constants, num_warps=2)
    sizes = ranges.constants_for(torch.bfloat16, dim) | {"H": 8 * group, "G": 8}
    for kernel, more in (
        (ranges.forward_kernel, ranges.FORWARD),
        (ranges.grad_q_kernel, {}),
        (ranges.grad_kv_kernel, {}),
    ):
        constants = sizes | more
        compile_kernel(kernel, constants, num_warps=constants.pop("num_warps"))


if __name__ == "__main__":
    main(*(int(x) for x in sys.argv[1].split(",")))
