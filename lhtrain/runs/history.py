"""history.jsonl: one record for every start of a run, and for every extension.

Metrics are what a run measured; the history is who started it when, with which command and code, and which
settings changed. A change that a resume does not accept silently is accepted once, and recorded here.
"""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lhtrain.files import open_append, read_regular
from lhtrain.provenance import code_version
from lhtrain.runs.changes import Change

Record = dict[str, Any]


class History:
    """The history of one run directory.

    A record has event ("start", "extend" or "checkpoint": the first one of the run), time (ISO 8601, UTC),
    command, cwd, host, pid, job (of SLURM, or null), versions (of lhtrain and torch, and the commit), and
      start    how ("new run", "resumed", "restarted" or "init_from"), step, checkpoint, ranks, changed
      extend   changed
    changed: the settings that differ from those of the checkpoint or, for "extend", of the run before; each
    has key, before, after. config: the file that keeps the configuration as it was before.
    """

    def __init__(self, path: Path):
        self.path = path

    def records(self) -> list[Record]:
        """All records, oldest first; lines that are no records are skipped. Raises OSError."""
        try:
            content = read_regular(self.path)
        except FileNotFoundError:
            return []
        records = []
        for line in content.split(b"\n"):
            try:
                record = json.loads(line.decode())
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                records.append(record)
        return records

    def add(self, event: str, **values: Any) -> None:
        """Append a record, durable when this returns. Raises OSError."""
        record = {
            "event": event,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **values,
            **_origin(),
        }
        whole = not self.path.exists() or read_regular(self.path)[-1:] in (b"\n", b"")
        with open_append(self.path) as file:
            # A line that a kill tore ends here, so that it spoils no other.
            file.write(("" if whole else "\n") + json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def accepted(self, *events: str) -> dict[str, Any]:
        """Key -> value of every change that a start or an extension (or only `events`) accepted; the latest
        value where a key was changed more than once."""
        out: dict[str, Any] = {}
        for record in self.records():
            if events and record.get("event") not in events:
                continue
            changed = record.get("changed")
            for change in changed if isinstance(changed, list) else []:
                if isinstance(change, dict) and isinstance(change.get("key"), str):
                    out[change["key"]] = change.get("after")
        return out

    def has_checkpoint(self) -> bool:
        """Whether a checkpoint was written since the run began, or was started over."""
        found = False
        for record in self.records():
            if record.get("event") == "checkpoint":
                found = True
            elif record.get("event") == "start" and record.get("checkpoint") is None:
                found = False
        return found

    def n_ranks(self) -> int | None:
        """The number of ranks of the latest start; None if there was none."""
        counts = [record.get("ranks") for record in self.records() if record.get("event") == "start"]
        return next((count for count in reversed(counts) if isinstance(count, int)), None)


def as_records(changes: list[Change]) -> list[dict[str, Any]]:
    """Changes as JSON has them."""
    plain = json.dumps([{"key": c.key, "before": c.before, "after": c.after} for c in changes], default=str)
    return json.loads(plain)


def _origin() -> dict[str, Any]:
    """Who writes a record, and with which code."""
    return {
        "command": shlex.join(sys.orig_argv),
        "cwd": os.getcwd(),
        "host": platform.node(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "versions": code_version(),
    }
