"""The recorded cases of the published layer (tests/golden/README.md), as tensors."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PATH = Path(__file__).parents[1] / "golden" / "layer.npz"
HEAD, STRIDE = 64, 11  # which rows are kept; tests/golden/make.py


@dataclass
class Case:
    sizes: dict[str, int]  # levels, pooling, budget
    inputs: list[Tensor]  # q, k, v and the output's gradient, (B, N, H, D)
    indices: Tensor  # (B, H, S)
    recorded: dict[str, np.ndarray]  # out, dq, dk, dv: kept rows, and NAME_norm

    def error(self, name: str, value: Tensor) -> float:
        """Relative error of `value` (B, N, H, D) on the kept rows, ‖a − b‖ / ‖b‖."""
        rows = torch.cat([value[:, :HEAD], value[:, HEAD::STRIDE]], 1).detach().cpu().float().numpy()
        return float(np.linalg.norm(rows - self.recorded[name]) / np.linalg.norm(self.recorded[name]))

    def norm_error(self, name: str, value: Tensor) -> float:
        """Relative error of the whole array's norm."""
        norm = float(self.recorded[name + "_norm"])
        return abs(float(value.detach().double().norm()) - norm) / norm


def cases() -> list[int]:
    return list(range(5))


def load(number: int) -> Case:
    file = np.load(PATH)
    config = json.loads(str(file[f"case{number}_config"]))
    draw = np.random.RandomState(config["seed"])
    shape = tuple(config[axis] for axis in "BNHD")
    inputs = [torch.from_numpy(draw.standard_normal(shape).astype(np.float32)) for _ in range(4)]
    names = [base + suffix for base in ("out", "dq", "dk", "dv") for suffix in ("", "_norm")]
    return Case(
        sizes={"levels": config["L"], "pooling": config["p"], "budget": config["k"]},
        inputs=inputs,
        indices=torch.from_numpy(file[f"case{number}_indices"].astype(np.int64)),
        recorded={name: file[f"case{number}_{name}"] for name in names},
    )
