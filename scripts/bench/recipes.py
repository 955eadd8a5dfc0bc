"""Compare recipes for a long context: train each with lhtrain's own command, evaluate it, write a row.

All recipes of a study train on the same documents with the same seed, number of tokens and learning rate.
Stages with shorter sequences pack the documents in another order. Each recipe is evaluated with full
attention (`lhtrain eval`), the strictly causal one with its own. switch_before and switch_after are those of
the last switch.

Run it from the root of the repository. A recipe is skipped if the file has a row of the same command, so
that a study can be made in several portions.

    python scripts/bench/recipes.py extend --csv scripts/bench/results/recipes.csv --out runs/recipes \\
        --data prepared/train --texts prepared/val init_from=smollm2.ckpt run.steps=100

    extend       lengthen a model: needs init_from=CHECKPOINT
    length       the same to 262,144 tokens
    scratch      train a model from nothing: needs model=NAME, such as model=scratch_50m
"""

import argparse
import csv
import datetime
import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rows import append

COLUMNS = [
    "study",
    "recipe",
    "kind",
    "seq_len",
    "model",
    "seed",
    "tokens",
    "seconds",
    "val_loss",
    "val_loss_far",
]
COLUMNS += [
    "recall",
    "recall_near",
    "recall_far",
    "recall_loss_far",
    "passkey",
    "passkey_far",
    "switch_before",
    "switch_after",
]
COLUMNS += ["stages", "tokens_per_second", "judged_with", "gpu", "date", "command"]


class Recipe(NamedTuple):
    """stage: a file in recipes/stage. kind: dense or lighthouse. own: judge it with its own attention."""

    stage: str
    kind: str
    own: bool = False
    settings: tuple[str, ...] = ()


ALONE = "plugins=[scripts.bench.window_alone]"


def window(tokens: int) -> tuple[str, ...]:
    return (f"stages.long.window={tokens}",)


def own_queries(tokens: int, budget: int, tile: int) -> tuple[str, ...]:
    """A window, with own queries on a pyramid of so many entries per level."""
    sizes = f"lighthouse.budget={budget}", f"lighthouse.tile={tile}"
    return (*window(tokens), "lighthouse.queries=own", *sizes)


LATE = ("optim.decay_fraction=0.1",)
# The rungs of a ladder from 8,192 to 262,144 tokens; the least rotary base for 65,536 tokens is 2.94e6.
RUNGS = ("stages.short.seq_len=8192", "stages.middle.seq_len=65536", "stages.middle.rope_theta=3e6")
# In the order of worth: a study may be cut short.
STUDIES = {
    "extend": {
        "full attention": Recipe("full", "dense"),
        "ladder": Recipe("ladder_extend", "dense"),
        "windowed, W = 2,048, recovery 30 %": Recipe("windowed_30", "lighthouse", settings=window(2048)),
        "windowed, W = 8,192, recovery 30 %": Recipe("windowed_30", "lighthouse", settings=window(8192)),
        "short, windowed, recovery 20 %": Recipe("short_windowed", "lighthouse"),
        "ladder, last rung 10 %": Recipe("ladder_10", "dense"),
        "windowed, recovery 10 %": Recipe("windowed_10", "lighthouse"),
        "published, recovery 10 %": Recipe("published_10", "lighthouse"),
        "strictly causal, its own attention": Recipe("strict", "lighthouse", own=True),
        "base change alone": Recipe("base_alone", "dense"),
        "window alone, recovery 10 %": Recipe("window_alone", "dense", settings=(ALONE,)),
        "windowed, recovery 3 %": Recipe("windowed_3", "lighthouse"),
        "windowed, no recovery": Recipe("windowed_0", "lighthouse"),
        "windowed, W = 2,048, recovery 10 %": Recipe("windowed_10", "lighthouse", settings=window(2048)),
        "windowed, W = 8,192, recovery 10 %": Recipe("windowed_10", "lighthouse", settings=window(8192)),
        "windowed, W = 2,048, recovery 20 %, late decay": Recipe(
            "windowed_20", "lighthouse", settings=(*window(2048), *LATE)
        ),
        "windowed, W = 8,192, recovery 20 %, late decay": Recipe(
            "windowed_20", "lighthouse", settings=(*window(8192), *LATE)
        ),
        "windowed, W = 2,048, recent, recovery 10 %": Recipe(
            "windowed_10", "lighthouse", settings=(*window(2048), "lighthouse.scorer=recent")
        ),
        "windowed, 6 dense layers, recovery 10 %": Recipe("windowed_hybrid", "lighthouse"),
        "ladder, windowed, recovery 10 %": Recipe("ladder_windowed", "lighthouse"),
        "window alone, W = 2,048, recovery 30 %": Recipe(
            "window_alone",
            "dense",
            settings=(ALONE, "stages.long.options.window=2048", "stages.long.fraction=0.7"),
        ),
        "windowed, W = 2,048, recovery 3 %": Recipe("windowed_3", "lighthouse", settings=window(2048)),
        "windowed, W = 2,048, no recovery": Recipe("windowed_0", "lighthouse", settings=window(2048)),
        "strictly causal, W = 2,048, its own attention": Recipe(
            "strict", "lighthouse", own=True, settings=window(2048)
        ),
        "own queries, W = 2,048, k = 1,536, its own attention": Recipe(
            "windowed_0", "lighthouse", own=True, settings=own_queries(2048, 1536, 16)
        ),
        "own queries, W = 2,048, k = 1,536, recovery 10 %": Recipe(
            "windowed_10", "lighthouse", settings=own_queries(2048, 1536, 16)
        ),
        "own queries, W = 2,048, k = 768, recovery 10 %": Recipe(
            "windowed_10", "lighthouse", settings=own_queries(2048, 768, 8)
        ),
        "own queries, W = 2,048, k = 1,536, position, recovery 10 %": Recipe(
            "windowed_10",
            "lighthouse",
            settings=(*own_queries(2048, 1536, 16), "lighthouse.scorer=position"),
        ),
        "own queries, W = 8,192, k = 1,536, recovery 10 %": Recipe(
            "windowed_10", "lighthouse", settings=own_queries(8192, 1536, 16)
        ),
        "own queries, W = 2,048, k = 1,536, recovery 3 %": Recipe(
            "windowed_3", "lighthouse", settings=own_queries(2048, 1536, 16)
        ),
        "own queries, W = 2,048, k = 1,536, recovery 30 %": Recipe(
            "windowed_30", "lighthouse", settings=own_queries(2048, 1536, 16)
        ),
    },
    "length": {
        "windowed, W = 2,048, recovery 30 %": Recipe("windowed_30", "lighthouse", settings=window(2048)),
        "ladder": Recipe("ladder_extend", "dense", settings=RUNGS),
        "full attention": Recipe("full", "dense"),
        "windowed, W = 8,192, recovery 10 %": Recipe("windowed_10", "lighthouse", settings=window(8192)),
        "windowed, W = 8,192, recovery 20 %, late decay": Recipe(
            "windowed_20", "lighthouse", settings=(*window(8192), *LATE)
        ),
        "own queries, W = 2,048, k = 2,048, recovery 10 %": Recipe(
            "windowed_10", "lighthouse", settings=own_queries(2048, 2048, 8)
        ),
        "ladder, last rung 10 %": Recipe("ladder_10", "dense", settings=RUNGS),
        "own queries, W = 8,192, k = 2,048, recovery 10 %": Recipe(
            "windowed_10", "lighthouse", settings=own_queries(8192, 2048, 8)
        ),
        "short, own queries, W = 8,192, k = 2,048, recovery 10 %": Recipe(
            "short_windowed",
            "lighthouse",
            settings=("stages.short.seq_len=8192", "stages.long.fraction=0.5", *own_queries(8192, 2048, 8)),
        ),
        "windowed, W = 8,192, recovery 30 %": Recipe("windowed_30", "lighthouse", settings=window(8192)),
        "windowed, W = 2,048, recovery 10 %": Recipe("windowed_10", "lighthouse", settings=window(2048)),
        "short, windowed, W = 8,192, recovery 20 %": Recipe(
            "short_windowed", "lighthouse", settings=(RUNGS[0], *window(8192))
        ),
    },
    "scratch": {
        "curriculum": Recipe("scratch_curriculum", "dense"),
        "short, windowed, recovery 10 %": Recipe("scratch_windowed", "lighthouse"),
        "short, windowed, recovery 20 %": Recipe(
            "scratch_windowed", "lighthouse", settings=("stages.long.fraction=0.3",)
        ),
        "short of 2,048, windowed, recovery 20 %": Recipe(
            "scratch_windowed",
            "lighthouse",
            settings=("stages.short.seq_len=2048", "stages.short.fraction=0.4"),
        ),
        "full attention": Recipe("full", "dense"),
        "short, own queries, recovery 10 %": Recipe(
            "scratch_windowed", "lighthouse", settings=own_queries(2048, 512, 16)
        ),
        "ladder": Recipe("scratch_ladder", "dense"),
        "published": Recipe("scratch_published", "lighthouse", settings=("model.dense_layers=[0,-1]",)),
        "windowed, W = 2,048, recovery 20 %": Recipe("windowed_20", "lighthouse", settings=window(2048)),
        "short, then the full length for 10 %": Recipe("scratch_curriculum_10", "dense"),
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--only", action="append", metavar="NAME", help="a recipe to run; default: all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--csv", type=Path, required=True, help="file to append rows to")
    parser.add_argument("--data", required=True, help="prepared folder to train on")
    parser.add_argument("--texts", required=True, help="prepared folder to evaluate on")
    parser.add_argument("--model", default="", help="name of the model in the rows")
    parser.add_argument("--base", type=float, default=6e6, help="rotary base for the full length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--eval", default="eval.samples=4", help="settings of lhtrain eval, separated by spaces"
    )
    parser.add_argument("overrides", nargs="*", help="settings for all runs, KEY=VALUE")
    arguments = parser.parse_intermixed_args()
    study = STUDIES[arguments.study]
    for name in arguments.only or study:
        if name not in study:
            parser.error(f"--only={name}: no recipe of this study; there are: {'; '.join(study)}")
        run(arguments, name, study[name])
    return 0


def is_done(arguments: argparse.Namespace, command: str) -> bool:
    return any((row["study"], row["command"]) == (arguments.study, command) for row in rows(arguments.csv))


def rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def run(arguments: argparse.Namespace, name: str, recipe: Recipe) -> None:
    """Train and evaluate a recipe, and append its row, unless the file has a row of the same command."""
    settings = ["--config-dir", "scripts/bench/recipes", f"stage={recipe.stage}", *recipe.settings]
    settings += [*arguments.overrides, f"run.seed={arguments.seed}", f"model.rope_theta={arguments.base:g}"]
    settings += ["data=prepared", f"data.path={arguments.data}", "eval.tasks=[]"]
    command = shlex.join(["lhtrain", *settings])
    if is_done(arguments, command):
        return
    # The folder's name depends on the command, so that a recipe with other settings starts a run of its own.
    digest = hashlib.sha256(command.encode()).hexdigest()[:8]
    folder = arguments.out / f"{arguments.study}-{recipe.stage}-{arguments.seed}-{digest}"
    lhtrain = [sys.executable, "-m", "lhtrain"]
    subprocess.run([*lhtrain, *settings, f"run.dir={folder}", "resume=auto"], check=True)
    judge = ["eval", str(folder), f"eval.data={arguments.texts}", *arguments.eval.split()]
    judge += [f"attention={'lighthouse' if recipe.own else 'full'}"]
    subprocess.run([*lhtrain, *judge], check=True)
    row = row_of(arguments, name, recipe, folder, command)
    append(arguments.csv, COLUMNS, [row])
    print(*(f"{key} {row[key]}" for key in COLUMNS[:-3]), sep="; ")


def row_of(
    arguments: argparse.Namespace, name: str, recipe: Recipe, folder: Path, command: str
) -> dict[str, Any]:
    """Return the row of a finished run."""
    summary = json.loads((folder / "summary.json").read_text())
    judged = json.loads((folder / "eval.json").read_text())
    results = judged["lighthouse"] if recipe.own else judged["full"]
    position, recall = results.get("loss_by_position") or {}, results.get("recall") or {}
    passkey = results.get("passkey") or {}
    seconds = sum(stage["wall_clock_seconds"]["compute"] for stage in summary["stages"])
    switch = summary["switches"][-1] if summary["switches"] else {}
    return {
        "study": arguments.study,
        "recipe": name,
        "kind": recipe.kind,
        "seq_len": judged["context"],
        "model": arguments.model or summary["name"],
        "seed": arguments.seed,
        "tokens": summary["tokens"],
        "seconds": round(seconds, 1),
        "val_loss": rounded(position.get("loss")),
        "val_loss_far": rounded((position.get("last") or {}).get("loss")),
        "recall": rounded(recall.get("exact")),
        "recall_near": at_length(min, recall.get("cells"), "exact"),
        "recall_far": at_length(max, recall.get("cells"), "exact"),
        "recall_loss_far": at_length(max, recall.get("cells"), "loss"),
        "passkey": rounded(passkey.get("accuracy")),
        "passkey_far": at_length(max, passkey.get("cells"), "accuracy"),
        "switch_before": rounded(switch.get("val_loss_before")),
        "switch_after": rounded(switch.get("val_loss_after")),
        "stages": "; ".join(map(step_time, summary["stages"])),
        "tokens_per_second": round(summary["tokens"] / seconds),
        "judged_with": "its own attention" if recipe.own else "full attention",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "date": datetime.date.today().isoformat(),
        "command": command,
    }


def step_time(stage: dict[str, Any]) -> str:
    """Return name, steps, length and mean seconds of a step of a stage of summary.json."""
    seconds = stage["wall_clock_seconds"]["compute"] / max(stage["steps"], 1)
    return f"{stage['name']}: {stage['steps']} x {stage['seq_len']} tokens, {seconds:.3f} s"


def at_length(
    pick: Callable[[Iterable[int]], int], cells: list[dict[str, Any]] | None, key: str
) -> float | None:
    """Return the mean of `key` over the cells of one length, that which `pick` takes: min or max."""
    if not cells:
        return None
    length = pick(cell["length"] for cell in cells)
    values = [cell[key] for cell in cells if cell["length"] == length and cell[key] is not None]
    return rounded(sum(values) / len(values)) if values else None


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


if __name__ == "__main__":
    sys.exit(main())
