"""The run directory: what lies where; configurations as they are saved and compared."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lhtrain.conf.schema import Config
from lhtrain.data.tokenizer import PREPARED, Tokenizer
from lhtrain.files import write_atomic

# Keys that decide nothing; and where data lie, instead of which their own fingerprint is compared.
UNCOMPARED = {"run.dir", "run.name", "run.log_every", "run.device"}
UNCOMPARED |= {"data.cache_dir", "data.path", "data.out", "data.workers"}


@dataclass(frozen=True)
class RunDir:
    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def tokenizer(self) -> Path:
        """A copy of the tokenizer.json that the tokens are of, where they are of one."""
        return self.path / "tokenizer.json"

    @property
    def plot(self) -> Path:
        return self.path / "loss.png"


def keep_tokenizer(run_dir: RunDir, tokenizer: Tokenizer) -> None:
    """Copy the tokenizer.json of a run into its directory: the original may change, move or vanish."""
    path = getattr(tokenizer, "path", None)
    if path is not None:
        write_atomic(run_dir.tokenizer, path.read_bytes())


def unwritable(path: Path) -> str | None:
    """The rule that `path`, which need not exist yet, breaks where a run cannot write into it."""
    nearest = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return None
    return f"{nearest} must be a folder that can be written"


def as_container(config: Config) -> dict[str, Any]:
    """The configuration as plain dicts, enums by name."""
    out = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    assert isinstance(out, dict)
    return {str(key): value for key, value in out.items()}


def differing(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Keys that decide a run's numbers, beyond rounding, and differ between two configurations.

    Each as 'key: saved -> now'.
    """
    out = []
    for group in ("model", "lighthouse", "stages", "data", "optim", "run"):
        for key in sorted(_flat(saved[group]).keys() | _flat(now[group]).keys()):
            name = f"{group}.{key}"
            if name in UNCOMPARED or name.endswith("grad_accum"):  # micro-batches follow the ranks
                continue
            if name.startswith("data.mix.") and name.endswith(".path"):
                continue
            before, after = (_without_place(_flat(config[group]).get(key)) for config in (saved, now))
            if before != after:
                out.append(f"{name}: {before} -> {after}")
    return out


def _without_place(value: Any) -> Any:
    """prepared:FOLDER without the folder."""
    return PREPARED if isinstance(value, str) and value.startswith(PREPARED) else value


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out
