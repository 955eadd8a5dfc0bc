"""The run directory: paths of its files, and checks whether it can be used."""

import itertools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhtrain.conf.problems import ConfigError
from lhtrain.conf.typed.own_files import read
from lhtrain.data.tokenizers.base import Tokenizer
from lhtrain.errors import RunError
from lhtrain.files import read_regular, write_atomic


@dataclass(frozen=True)
class RunDir:
    """The paths of the files of a run."""

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
    def history(self) -> Path:
        return self.path / "history.jsonl"

    def read_config(self) -> dict[str, Any] | None:
        """Return config.yaml as plain values; None if it does not exist.

        Raises RunError: the file cannot be read, or is not a configuration.
        """
        try:
            loaded = read(read_regular(self.config), str(self.config), "").typed()
        except FileNotFoundError:
            return None
        except ConfigError as error:
            why = "; ".join(map(str, error.problems))
            raise RunError(f"{self.config} cannot be read as a configuration: {why}") from error
        except OSError as error:
            raise RunError(f"{self.config} cannot be read as a configuration: {error}") from error
        return {str(key): value for key, value in loaded.items()}

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "eval.json"

    @property
    def tokenizer(self) -> Path:
        """A copy of the tokenizer.json of the data, if the data have one."""
        return self.path / "tokenizer.json"

    @property
    def imported(self) -> Path:
        """Files of the published model with which the run began, for an export; see `interop.carried`."""
        return self.path / "imported"

    @property
    def profile(self) -> Path:
        """Traces of the steps profile.steps."""
        return self.path / "profile"

    @property
    def plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def samples(self) -> Path:
        """Texts that the model wrote during the run, with samples.prompts."""
        return self.path / "samples.jsonl"


def imported_files(checkpoint: Path) -> Path:
    """Return where a checkpoint of a run, or an import, has the files of `interop.carried`; may not exist."""
    inside = checkpoint.parent.name == "checkpoints"
    return RunDir(checkpoint.parent.parent if inside else checkpoint).imported


def keep_files(run_dir: RunDir, tokenizer: Tokenizer, source: Path | None = None) -> None:
    """Copy what an export needs into a run's directory, because the originals may change or be deleted.

    That is the tokenizer.json of the data, and files of the published model if the run starts from it.

    source: the checkpoint from which a new run starts; None: there is none, or the run is resumed.
    """
    path = getattr(tokenizer, "path", None)
    if path is not None:
        write_atomic(run_dir.tokenizer, path.read_bytes())
    place = None if source is None else imported_files(source)
    if place is not None and place.is_dir() and place.resolve() != run_dir.imported.resolve():
        shutil.rmtree(run_dir.imported, ignore_errors=True)
        shutil.copytree(place, run_dir.imported)


def unwritable(path: Path) -> str | None:
    """Return the rule that `path` breaks if a run cannot write into it, else None; it need not exist yet."""
    nearest = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return None
    return f"{nearest} must be a writable folder"


def holds_run(path: Path) -> bool:
    """Return whether `path` contains metrics or checkpoints of a run."""
    run_dir = RunDir(path)
    return os.path.lexists(run_dir.metrics) or any(run_dir.checkpoints.glob("*step_*"))


def claim(path: Path, suffix: str = "") -> Path:
    """Make the folder `path`, or the first of PATH_2, PATH_3 … that does not exist yet.

    `suffix` is appended to the name of the folder. Returns the path without the suffix.
    """
    for number in itertools.count(1):
        name = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            Path(f"{name}{suffix}").mkdir(parents=True)
        except FileExistsError:
            continue
        return name
    raise AssertionError("itertools.count ends")
