"""history.jsonl: a record for each start of a run, each extension and its first checkpoint.

A record has the time, the command, the version of the code and the settings that changed. A changed setting
has to be accepted only once (resume=force), because it is recorded here.
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

    A record has event ("start", "extend", or "checkpoint" for the first checkpoint of the run), time
    (ISO 8601, UTC), command, cwd, host, pid, job (SLURM's job id, or null), versions (of lhtrain and torch,
    and the commit), and
      start    how ("new run", "resumed", "restarted" or "init_from"), step, checkpoint, ranks, changed,
               config
      extend   changed, config
    changed: the settings that differ from the checkpoint's or, for "extend", from the earlier plan; each has
    key, before and after. config: name of the file that keeps the earlier configuration, or null.
    """

    def __init__(self, path: Path):
        self.path = path

    def records(self) -> list[Record]:
        """Return all records, oldest first; invalid lines are skipped. Raises OSError."""
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
        """Append a record and sync it to disk. Raises OSError."""
        record = {
            "event": event,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **values,
            **_origin(),
        }
        whole = not self.path.exists() or read_regular(self.path)[-1:] in (b"\n", b"")
        with open_append(self.path) as file:
            # End an incomplete line that a kill left, so that it does not damage the new record.
            file.write(("" if whole else "\n") + json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def accepted(self, *events: str) -> dict[str, Any]:
        """Return the latest accepted value of each changed key, by key.

        events: only changes of these events, such as "start"; by default of all.
        """
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
        """Return whether a checkpoint was written since the run was started new or started over."""
        found = False
        for record in self.records():
            if record.get("event") == "checkpoint":
                found = True
            elif record.get("event") == "start" and record.get("checkpoint") is None:
                found = False
        return found

    def n_ranks(self) -> int | None:
        """Return the number of ranks of the latest start; None if there is none."""
        counts = [record.get("ranks") for record in self.records() if record.get("event") == "start"]
        return next((count for count in reversed(counts) if isinstance(count, int)), None)


def as_records(changes: list[Change]) -> list[dict[str, Any]]:
    """Return changes as plain JSON values."""
    plain = json.dumps([{"key": c.key, "before": c.before, "after": c.after} for c in changes], default=str)
    return json.loads(plain)


def _origin() -> dict[str, Any]:
    """Return the process, the command and the code version that write a record."""
    return {
        "command": shlex.join(sys.orig_argv),
        "cwd": os.getcwd(),
        "host": platform.node(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "versions": code_version(),
    }
