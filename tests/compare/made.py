"""Run directories that are written without training, so that every number in them is known."""

import json
from pathlib import Path
from typing import Any

import yaml

DENSE = {"attention": "dense", "seq_len": 2048, "steps": 10, "batch_tokens": 4096, "budget": 128}
LIGHTHOUSE = DENSE | {
    "attention": "lighthouse",
    "levels": 3,
    "pooling": 4,
    "scorer": "norm",
    "cover_prefix": True,
}


def row(kind: str, step: int, stage: str, seconds: float, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "stage": stage, "tokens": 4096 * step, "seconds": seconds, **values}


def train(step: int, stage: str, seconds: float, loss: float | None, pace: float = 1.0) -> dict[str, Any]:
    speed = {"tokens_per_second": 4096.0 / pace, "mfu": 0.4, "step_seconds": pace}
    return row("train", step, stage, seconds, loss=loss, lr=1e-3, grad_norm=1.0, **speed)


def stage(name: str, steps: int, seconds: float, **values: Any) -> dict[str, Any]:
    parts = {"total": seconds, "data": 0.5, "compute": seconds - 1, "validation": 0.5, "checkpoint": 0.0}
    known = {"attention": "dense", "seq_len": 2048, "tokens": 4096 * steps, "tokens_per_second": 4096.0}
    known |= {"mfu": 0.4, "peak_memory_gb": 1.5, "val_loss": 3.0, "first_loss": 5.0, "last_loss": 3.0}
    return {"name": name, "steps": steps, "wall_clock_seconds": parts, **known, **values}


def dense_rows(pace: float = 1.0, steps: int = 10) -> list[dict[str, Any]]:
    """A step takes `pace` seconds; the loss falls by 0.2 a step from 5; validated every second step."""
    rows = []
    for step in range(1, steps + 1):
        rows.append(train(step, "dense", pace * step, 5 - 0.2 * step, pace))
        if step % 2 == 0:
            rows.append(row("validation", step, "dense", pace * step, val_loss=5 - 0.2 * step))
    return rows


def two_stage_rows() -> list[dict[str, Any]]:
    """Five steps of 0.2 s with Lighthouse attention, validated at 1.0, then five of 1 s with full."""
    rows = [train(step, "lighthouse", 0.2 * step, 5 - 0.3 * step, 0.2) for step in range(1, 6)]
    rows.append(row("validation", 5, "lighthouse", 1.0, val_loss=1.0))
    switch = {"from": "lighthouse", "to": "recovery", "val_loss_before": 1.0, "val_loss_after": 4.0}
    rows.append(row("switch", 6, "recovery", 1.0, loss_before=3.5, loss_before_stderr=0.1, **switch))
    for step in range(6, 11):
        rows.append(train(step, "recovery", step - 4.0, 4 - 0.2 * (step - 5)))
        rows.append(row("validation", step, "recovery", step - 4.0, val_loss=4 - 0.2 * (step - 5)))
    return rows


def made_run(
    path: Path, rows: list[dict[str, Any]], stages: dict[str, Any] | None = None, **summary: Any
) -> Path:
    """Write a finished run. stages: the configuration's; summary: changes to summary.json."""
    path.mkdir(parents=True)
    stages = {"dense": DENSE} if stages is None else stages
    (path / "config.yaml").write_text(yaml.safe_dump(config(stages), sort_keys=False))
    (path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    of_stages = [stage(name, one["steps"], 10.0, attention=one["attention"]) for name, one in stages.items()]
    known = {
        "finished": True,
        "steps": 10,
        "tokens": 40960,
        "wall_clock_seconds": rows[-1]["seconds"] if rows else 0,
    }
    known |= {
        "val_loss": 3.0,
        "stages": of_stages,
        "switches": [],
        "name": path.name,
        "ended": {"how": "finished"},
    }
    known |= {
        "ranks": 2,
        "compile_seconds": 0.0,
        "data": "abc",
        "parameters": 1000,
        "hardware": {"device": "cpu"},
    }
    (path / "summary.json").write_text(json.dumps(known | {"versions": {"lhtrain": "0.1.0"}} | summary))
    start = {"event": "start", "how": "new run", "time": "2026-01-01T00:00:00+00:00", "step": 0, "ranks": 2}
    (path / "history.jsonl").write_text(json.dumps(start | {"command": "lhtrain", "changed": []}) + "\n")
    return path


def config(stages: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": {"dir": "x", "name": "x", "steps": 10},
        "optim": {"lr": 1e-3},
        "lighthouse": {"budget": 128},
        "data": {"tokenizer": "bytes", "val_fraction": 0.01},
        "eval": {"tokens": 4096},
        "stages": stages,
    }


def two_stages() -> dict[str, Any]:
    return {"lighthouse": LIGHTHOUSE | {"steps": 5}, "recovery": DENSE | {"steps": 5}}
