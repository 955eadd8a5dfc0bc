"""Quotes text for SLURM. `lhtrain/quote.py` quotes for Hydra and shells."""

import re

_PLAIN = re.compile(r"[A-Za-z0-9_./:,=@%+~\-]+")


def directive(text: str) -> str:
    """Return `text` as a value for an #SBATCH line. `text` must not contain line breaks."""
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def job_name(text: str) -> str:
    """Return `text` as a job name: other characters than letters, digits and _.+- become `_`."""
    return re.sub(r"[^A-Za-z0-9_.+\-]+", "_", text).strip("-_")[:100] or "lhtrain"
