"""Renders the page of `lhtrain report` from template.html, page.css and page.js."""

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import lhtrain
from lhtrain.compare.comparison import Compared, compare, summary_stages
from lhtrain.compare.run import Run
from lhtrain.compare.table import equal_time_text, letter_of, speed_up_text
from lhtrain.pages.charts import SPEEDS, charts, switch_steps
from lhtrain.pages.evaluation import evaluation, evaluation_charts
from lhtrain.report.summary import recovery
from lhtrain.text import (
    dict_at,
    dicts_at,
    duration,
    finite,
    number,
    number_at,
    one_line,
    printable,
    to_json,
    with_width,
)

HERE = Path(__file__).parent
EVENTS = ("rewound", "skipped", "spike", "changed")
MOST_EVENTS = 100
MOST_SAMPLES = 40
NOT_PARTS = ("total",)


def render(runs: list[Run], price: float | None = None, now: datetime | None = None) -> str:
    """Return the page. price: of one GPU for an hour, for the cost. now: the time that the page shows."""
    comparison = compare(runs)
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    drawn = charts(runs) | evaluation_charts(runs)
    return (
        _environment()
        .get_template("template.html")
        .render(
            runs=[
                _run(run, one, at, price)
                for at, (run, one) in enumerate(zip(runs, comparison.runs, strict=True))
            ],
            comparison=comparison,
            evaluation=evaluation(runs),
            charts=drawn,
            speeds=[name for name in SPEEDS if name in drawn],
            data=Markup(_json(drawn)),
            style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
            price=price,
            now=(now or datetime.now(UTC)).isoformat(" ", "minutes"),
            version=lhtrain.__version__,
        )
    )


def _environment() -> Environment:
    """Return an environment that escapes everything which comes from files of the user."""
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "duration": _duration, "big": big, "line": one_line, "text": printable}
    made.globals |= {"speed_up": speed_up_text, "equal_time": equal_time_text, "letter": letter_of}
    return made


def _json(value: Any) -> str:
    """Return JSON for a <script> element: no text in it ends the element or starts a comment."""
    text = to_json(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def big(value: float | None) -> str:
    """Format a large number: 614 K, 1.23 M, 4.56 G, 7.89 T, 1.2e+18."""
    if value is None:
        return "-"
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}" if value < 1e18 else f"{value:.2e}"
    return f"{value:.3g}"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _run(run: Run, compared: Compared, at: int, price: float | None) -> dict[str, Any]:
    hours, device = compared.device_hours, _device(run)
    config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else ""
    return {
        "label": run.label,
        "letter": letter_of(at),
        "at": at,
        "state": run.state,
        "detail": run.detail,
        "numbers": compared,
        "bits_per_byte": _last_validation(run, "val_bits_per_byte"),
        "average_val_loss": _last_validation(run, "average_val_loss"),
        "device": device,
        "cost": hours * price if hours is not None and price is not None else None,
        "stages": [_stage(stage) for stage in summary_stages(run)],
        "sources": _sources(run),
        "switches": _switches(run),
        "samples": _samples(run),
        "history": [_record(record) for record in run.history],
        "events": [_event(row) for row in run.rows if row["kind"] in EVENTS][-MOST_EVENTS:],
        "config": config,
        "about": _about(run),
        "notes": run.notes,
    }


def _last_validation(run: Run, key: str) -> float | None:
    """Return a number of the last validation; None if its row does not have it."""
    rows = (row for row in reversed(run.rows) if row["kind"] == "validation")
    return number_at(next(rows, {}), key)


def _device(run: Run) -> str:
    """Return the word for what the ranks ran on."""
    device = str(dict_at(run.summary, "hardware").get("device", ""))
    return "CPU" if device == "cpu" else "GPU"


def _stage(stage: dict[str, Any]) -> dict[str, Any]:
    seconds = dict_at(stage, "wall_clock_seconds")
    parts = [
        (str(key), value) for key in seconds if key not in NOT_PARTS and (value := number_at(seconds, key))
    ]
    total = number_at(seconds, "total") or sum(value for _, value in parts)
    rest = total - sum(value for _, value in parts)
    parts += [("other", rest)] if total and rest / total > 0.005 else []
    known = (
        "steps",
        "tokens",
        "tokens_per_second",
        "mfu",
        "peak_memory_gb",
        "first_loss",
        "val_loss",
        "average_val_loss",
        "seq_len",
    )
    return {
        "name": str(stage.get("name")),
        "attention": str(stage.get("attention") or "-"),
        "total": total or None,
        "parts": [(name, value, value / total) for name, value in parts] if total else [],
        "loss": with_width(number_at(stage, "loss_mean"), number_at(stage, "loss_stderr")),
        **{key: number_at(stage, key) for key in known},
    }


def _sources(run: Run) -> list[tuple[str, float | None, float | None]]:
    """Return the name, tokens and epochs of each source of the data that the run has read."""
    sources = dict_at(run.summary, "sources")
    found = ((name, dict_at(sources, name)) for name in sources)
    return [(str(name), number_at(one, "tokens"), number_at(one, "epochs")) for name, one in found]


def _switches(run: Run) -> list[dict[str, Any]]:
    """Return a title, a sentence and the name of the chart of each switch."""
    entries = {number_at(entry, "step"): entry for entry in dicts_at(run.summary, "switches")}
    rows = [row for row in run.rows if row["kind"] == "switch"]
    out = []
    for number_of, (step, row) in enumerate(zip(switch_steps(run), rows, strict=True)):
        before, after = (number_at(row, f"val_loss_{name}") for name in ("before", "after"))
        entry: dict[str, Any] = {"steps_still_above": 0, "steps_to_recover": None, "val_loss_before": before}
        entry |= {key: value for key, value in entries.get(step, {}).items() if key in entry}
        losses = f"validation loss {number(before)} → {number(after)} with the same weights"
        out.append(
            {
                "title": f"{row.get('from')} → {row.get('to')} after step {step:,}",
                "text": f"{losses}; {recovery(entry)}",
                "chart": f"switch-{{}}-{number_of}",
            }
        )
    return out


def _samples(run: Run) -> list[dict[str, Any]]:
    """Return the newest samples, those of the last step first."""
    keys = ("step", "stage", "prompt", "text", "seed", "temperature")
    newest = list(reversed(run.samples))[:MOST_SAMPLES]
    return [{key: "" if sample.get(key) is None else str(sample[key]) for key in keys} for sample in newest]


def _record(record: dict[str, Any]) -> dict[str, str]:
    """Return a record of the history as texts, without host and folder, because pages are sent to others."""
    versions = dict_at(record, "versions")
    commit = str(versions.get("commit") or "")[:12]
    changes = dicts_at(record, "changed")
    return {
        "time": str(record.get("time", "")),
        "event": str(record.get("how") or record.get("event") or ""),
        "step": str(record.get("step", "")),
        "ranks": str(record.get("ranks", "")),
        "commit": commit + ("+" if versions.get("uncommitted_changes") else ""),
        "command": str(record.get("command", "")),
        "changed": "\n".join(f"{c.get('key')}: {c.get('before')} → {c.get('after')}" for c in changes),
    }


def _event(row: dict[str, Any]) -> dict[str, str]:
    known = ("kind", "step", "stage", "tokens", "seconds")
    rest = {key: value for key, value in row.items() if key not in known}
    text = ", ".join(f"{key} {to_json(finite(value))}" for key, value in rest.items())
    return {"step": f"{row['step']:,}", "kind": str(row["kind"]), "text": text}


def _about(run: Run) -> list[tuple[str, str]]:
    """Return facts on the model, the machine and the versions."""
    summary = run.summary
    facts = [
        ("folder", str(run.path)),
        ("parameters", f"{int(value):,}" if (value := number_at(summary, "parameters")) else ""),
        ("ranks", str(summary.get("ranks") or "")),
        ("data fingerprint", str(summary.get("data") or "")),
    ]
    for name in ("hardware", "versions"):
        values = dict_at(summary, name)
        facts.append((name, ", ".join(f"{key} {value}" for key, value in values.items() if value)))
    return [(name, text) for name, text in facts if text]
