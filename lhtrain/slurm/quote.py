"""Text written so that SLURM or Hydra reads it back unchanged; for bash there is shlex.quote."""

import re
from pathlib import Path

from lhtrain.conf.problems import ConfigError, Problem

_PLAIN = re.compile(r"[A-Za-z0-9_./:,=@%+~\-]+")


def directive(text: str) -> str:
    """`text` as a value in a line of #SBATCH, which has its own quotes and knows no line breaks."""
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def override(text: str) -> str:
    """`text` as the value of a Hydra override.

    Hydra takes backslashes as they are, unless they stand before a quote.
    """
    if re.fullmatch(r"/[A-Za-z0-9_./\-]*", text):
        return text
    quoted = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    return "'" + re.sub(r"(\\+)$", lambda match: match[1] * 2, quoted) + "'"


def search_path(folder: str) -> str:
    """The override by which Hydra looks for files in `folder` too. Raises ConfigError if there is none."""
    if not Path(folder).expanduser().is_dir():
        raise ConfigError([Problem("--config-dir", folder, "no such folder")])
    return f"hydra.searchpath=[{override(f'file://{Path(folder).expanduser().absolute()}')}]"


def job_name(text: str) -> str:
    """A label for squeue: letters, digits and a little more; everything else would spoil its table."""
    return re.sub(r"[^A-Za-z0-9_.+\-]+", "_", text).strip("-_")[:100] or "lhtrain"
