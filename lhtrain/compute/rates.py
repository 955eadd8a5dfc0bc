"""How fast GPUs compute, move bytes and send them: the constants of `step_time` and `links`.

Rates of the H100 and H200 are those that kernels reach inside training steps, where the limit of the board's
power makes them slower than kernels that run alone. Each has its source. Rates of other GPUs were not
measured: they are the H100's shares of the data sheet.
"""

from dataclasses import dataclass

from lhtrain.conf.schema import MomentDtype

# Dense bfloat16 TFLOP/s from the data sheets. The first key that is part of the GPU's name counts, so boards
# with less power come before the rest of their family.
PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A6000": 155.0,
}


@dataclass(frozen=True)
class Rates:
    """What one GPU reaches in a training step: FLOP/s, bytes/s, watts.

    forward, backward: attention by the fastest kernel over many rows. nvlink: bytes/s in each direction to
    the other GPUs of the machine. watts: power of the board at its limit.
    """

    products: float
    forward: float
    backward: float
    memory: float
    nvlink: float
    watts: float
    gigabytes: float
    kernel: str = "fa4"  # the attention kernel of `forward` and `backward`
    assumed: str = ""  # which rates were not measured, and where they come from


# Time of cuDNN's attention relative to FlashAttention-4's, forward and backward, at 98,304 tokens on H100 and
# H200; 1.3 and 1.16 from 262,144 tokens (attention.csv).
CUDNN = (1.125, 1.175)

# H100: products, 331 ms for 235 TFLOP; attention, 0.97 of attention.csv's 684 and 526 TFLOP/s (3,225 ms in a
# step against 30 * 104.1 alone); elementwise kernels, 52 tensors in 3.5 ms (all: "Time of a step" in
# scripts/bench/NOTES.md). NVLink: the exchanges of multi_gpu.csv's row cp = 2, recovery, 36.2 GB in 153 ms.
# Watts: nvidia-smi during these steps (NOTES.md, "Two GPUs").
H100 = Rates(710e12, 663e12, 510e12, 3.0e12, 236e9, 700, 80)
# H200: the same chip with faster memory; the speed of a copy (kernels/NOTES.md). Attention: 0.97 of 656 and
# 494 TFLOP/s (attention.csv). Products and NVLink were not measured; they are those of the H100.
H200 = Rates(710e12, 636e12, 479e12, 4.17e12, 236e9, 700, 141)


def _by_data_sheet(
    name: str, terabytes: float, nvlink: float, watts: float, gigabytes: float, kernel: str
) -> Rates:
    """Return rates of a GPU that was not measured: the H100's shares of the data sheet."""
    share = PEAK_TFLOPS[name] / PEAK_TFLOPS["H100"]
    assumed = f"no {name} was measured: FLOP/s and bytes/s are the H100's shares of the data sheet"
    slower = CUDNN if kernel == "cudnn" else (1, 1)
    flops = share * H100.products, share * H100.forward / slower[0], share * H100.backward / slower[1]
    bandwidths = terabytes / 3.35 * H100.memory, nvlink / 450 * H100.nvlink
    return Rates(*flops, *bandwidths, watts, gigabytes, kernel, assumed)


# Memory TB/s, NVLink GB/s in each direction, watts and GB of the data sheets. FlashAttention-4 needs Hopper.
GPUS = {
    "a100": _by_data_sheet("A100", 2.04, 300, 400, 80, "cudnn"),
    "h100": H100,
    "h200": H200,
    "b200": _by_data_sheet("B200", 8.0, 900, 1000, 180, "fa4"),
}

# The names by which CUDA knows the GPUs whose rates were measured.
MEASURED = {"NVIDIA H100 80GB HBM3": H100, "NVIDIA H200": H200}

# Head rows (sequences * rows * heads) at which attention reaches half its rate, because fewer tiles than
# these do not fill the GPU: attention.csv, fa4 from 3,072 to 18,432 rows of 8 heads.
HALF_RATE = 10_400
# FLOP/s of heads of 64 relative to 128: 9 heads of 64 at 98,304 tokens (recipes.csv, "full attention").
HEAD_64 = 0.85
# Attention to a window takes the time of this many more keys, because tiles are partly masked and each begins
# anew: at 512 it reaches half of the rate over many rows (attention.csv, "near": 320 and 241 TFLOP/s).
WINDOW_KEYS = 512
# Strictly causal attention, relative to attention over many rows; one row of train.csv.
STRICT = 0.34
# The backward pass of attention with compute.deterministic=true, relative to the usual one. One row each of
# the recovery and the Lighthouse stage (train.csv).
DETERMINISTIC = 0.62
# float32 FLOP/s relative to bfloat16 (without TF32): two rows of train.csv.
FLOAT32 = (0.079, 0.042)  # products, attention
# Float8: products take 140 instead of 225 ms; casts read and write inputs and outputs of products 2.7 times
# (NOTES.md, "What did not help").
FLOAT8 = 1.6
FLOAT8_PASSES = 2.7

# Bytes/s per GPU between machines: 0.8 of one 400 Gb/s adapter per GPU. Assumed, not measured.
NETWORK = 40e9
NODE = 8  # GPUs of a machine
# Seconds of a step of a ring of NCCL, inside a machine and between two: src/graph/tuning.cc, protocol Simple.
NVLINK_HOP, NETWORK_HOP = 3.4e-6, 14e-6
# Time of a step on several GPUs relative to one, because all wait for the slowest one at every exchange:
# the loss of FSDP on two GPUs (1.3 to 3.2 %, multi_gpu.csv) besides its exposed communication.
SLOWEST = 1.02
# A link limits a run if its transfers add more than this share of a step.
LINK_LIMITS = 0.1
# Seconds that the host needs to start the kernels of a block for one pass, with full attention and with
# Lighthouse (train.csv and small.csv, compute.cuda_graph=off at 4,096 tokens). They depend on the host.
LAUNCHES, LIGHTHOUSE_LAUNCHES = 0.7e-3, 1.15e-3
# Seconds by which a CUDA graph takes longer for one pass of a block than its work at the rates above: its 21
# kernels are too short to reach them (small.csv, 4,096 tokens). The same for the rest of a step: embedding,
# loss, clipping and optimizer (train.csv, gpt_tiny).
GRAPH_PASS, GRAPH_STEP = 65e-6, 0.5e-3
# Bytes per weight that converting a moment to float32 and back reads and writes, and that Muon reads and
# writes besides its products: "Optimizers on a GPU" in scripts/bench/NOTES.md.
CONVERSION = {MomentDtype.float32: 0, MomentDtype.bfloat16: 35, MomentDtype.int8: 155}
MUON = 200
