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


def search_path(*folders: str) -> str:
    """The override by which Hydra looks for files in `folders` too. Raises ConfigError if one is missing."""
    if missing := [folder for folder in folders if not Path(folder).expanduser().is_dir()]:
        raise ConfigError([Problem("--config-dir", folder, "no such folder") for folder in missing])
    places = (override(f"file://{Path(folder).expanduser().absolute()}") for folder in folders)
    return f"hydra.searchpath=[{','.join(places)}]"


def job_name(text: str) -> str:
    """A label for squeue: letters, digits and a little more; everything else would spoil its table."""
    return re.sub(r"[^A-Za-z0-9_.+\-]+", "_", text).strip("-_")[:100] or "lhtrain"
