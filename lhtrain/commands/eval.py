"""`lhtrain eval RUN`: measure how a trained model uses a long context."""

import os
import time
from argparse import Namespace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from lhtrain.commands.failure import explained
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.rules.evaluation import ATTENTIONS, TASKS, task_problems
from lhtrain.conf.rules.values import value_problems
from lhtrain.conf.schema import Config, Device, EvalConfig, Precision
from lhtrain.conf.typed.paths import expanded
from lhtrain.distributed.ranks import ready_ranks
from lhtrain.errors import RunError, UsageError
from lhtrain.files import write_atomic
from lhtrain.report.evaluation import tables
from lhtrain.runs.own_config import value_of
from lhtrain.runs.run_dir import RunDir
from lhtrain.text import to_json
from lhtrain.weights import prefix_of

Chosen = TypeVar("Chosen", bound=Enum)

LISTS = {"tasks": "[recall,passkey]", "lengths": "[4096,32768]", "depths": "[0.1,0.9]"}


def evaluate(arguments: Namespace) -> None:
    """Measure the tasks, print the tables and write eval.json. Raises UsageError, ConfigError, RunError."""
    config = eval_config(arguments)
    if arguments.attention not in (known := ("both", *ATTENTIONS)):
        raise UsageError(f"attention={arguments.attention}: must be one of {', '.join(known)}")
    prefix_of(arguments.weights)  # raises
    batch_tokens = arguments.batch_tokens
    if not (batch_tokens.isdecimal() and int(batch_tokens) > 0):
        raise UsageError(f"batch_tokens={batch_tokens}: must be a whole number, at least 1")
    device, precision = _member(arguments, "device", Device), _member(arguments, "precision", Precision)
    source = Path(arguments.SOURCE)
    out = None if arguments.out is None else place_of(arguments.out)

    ranks = ready_ranks()

    def measure() -> None:
        from lhtrain.distributed.world import close
        from lhtrain.evaluation.trained import evaluate_trained  # imports torch

        began = time.perf_counter()
        try:
            result, path = evaluate_trained(
                source,
                config,
                device=device,
                precision=precision,
                attention=arguments.attention,
                stage=arguments.stage,
                weights=arguments.weights,
                batch_tokens=int(batch_tokens),
                say=lambda text: print(text, flush=True),
                opened_at=lambda path: check_place(out or beside(source, path)),
            )
        except OSError as error:
            raise RunError(str(error)) from error
        close()
        if ranks.rank == 0:
            result["seconds"] = round(time.perf_counter() - began, 1)
            Console(markup=False, emoji=False, highlight=False).print(tables(result))
            write(result, out or beside(source, path))

    if ranks.size == 1:
        measure()
    else:
        explained(measure, Config, same=(UsageError, ConfigError))


def _member(arguments: Namespace, name: str, kind: type[Chosen]) -> Chosen:
    """Return the member of `kind` that an argument names. Raises UsageError: there is none."""
    given = getattr(arguments, name)
    if given not in kind.__members__:
        raise UsageError(f"{name}={given}: must be one of {', '.join(kind.__members__)}")
    return kind[given]


def place_of(given: str) -> Path:
    """Return the file that `out` names. Raises UsageError: it cannot be one."""
    out = Path(expanded(given)).absolute()
    if not given or out.is_dir():
        raise UsageError(f"out={given}: must be a file, such as out=eval.json")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"out={given}: {out.parent} must be a writable folder")
    return out


def check_place(path: Path) -> None:
    """Raise RunError if the results, which take long to measure, could not be written to `path`."""
    if not os.access(path.parent, os.W_OK):
        raise RunError(f"{path.parent}: must be writable, for {path.name}; out=FILE names another place")


def eval_config(arguments: Namespace) -> EvalConfig:
    """Return the typed settings. Raises ConfigError, which names each that is not valid."""
    given = {key: value for key, value in vars(arguments).items() if key.startswith("eval.") and value}
    values: dict[str, Any] = {"tasks": list(TASKS)}
    problems = []
    for key, text in given.items():
        try:
            values[key.removeprefix("eval.")] = value_of(f"{key}={text}")
        except ValueError as error:
            problems.append(Problem(key, text, str(error).strip().splitlines()[0]))
            continue
        name = key.removeprefix("eval.")
        if name in LISTS and not isinstance(values[name], list):
            problems.append(Problem(key, text, f"must be a list, such as {LISTS[name]}"))
            del values[name]
    try:
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EvalConfig), values))
    except OmegaConfBaseException as error:
        key = f"eval.{error.full_key}".partition("[")[0]
        problems.append(Problem(key, given.get(key), str(error).strip().splitlines()[0]))
        raise ConfigError(problems) from error
    problems += [*value_problems(config, "eval."), *task_problems(config)]
    if not config.tasks:
        problems.append(Problem("eval.tasks", "[]", f"must contain at least one of {', '.join(TASKS)}"))
    if problems:
        raise ConfigError(problems)
    config.data = expanded(config.data) if isinstance(config.data, str) else config.data
    return config


def beside(source: Path, path: Path) -> Path:
    """Return where the results of the checkpoint or folder `path` are written.

    A run: its eval.json. A checkpoint of a run: eval_STEP.json in the run. Else: a file beside the folder.
    """
    if path.parent.name == "checkpoints":
        run = RunDir(path.parent.parent)
        named = source.resolve() == path.resolve()
        return run.path / f"eval_{path.name}.json" if named else run.evaluation
    path = path.absolute()
    return path.parent / f"{path.name}.eval.json"


def write(result: dict[str, Any], path: Path) -> None:
    """Write eval.json to `path` and say so. Raises RunError: it cannot be written."""
    try:
        write_atomic(path, to_json(result, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"{path} was not written ({error}); out=FILE names another place") from error
    print(f"written to {path}")
