"""Text written so that SLURM reads it back unchanged. `lhtrain/quote.py` has Hydra and shells."""

import re

_PLAIN = re.compile(r"[A-Za-z0-9_./:,=@%+~\-]+")


def directive(text: str) -> str:
    """`text` as a value in a line of #SBATCH, which has its own quotes and knows no line breaks."""
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def job_name(text: str) -> str:
    """A label for squeue: letters, digits and a little more; everything else would spoil its table."""
    return re.sub(r"[^A-Za-z0-9_.+\-]+", "_", text).strip("-_")[:100] or "lhtrain"
