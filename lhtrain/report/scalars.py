"""The numbers of a row of metrics.jsonl under the names that trackers show."""

from lhtrain.report.metrics import Row

# Names that people know from other trainers, besides KIND/KEY of the row: kind -> key -> name.
KNOWN = {
    "train": {
        "lr": "lr",
        "grad_norm": "grad_norm",
        "tokens_per_second": "tokens_per_second",
        "mfu": "mfu",
        "peak_memory_gb": "memory",
        "tokens": "tokens",
    },
    "validation": {
        "val_loss": "val/loss",
        "val_bits_per_byte": "val/bits_per_byte",
        "average_val_loss": "val/average_loss",
    },
}


def scalars(row: Row) -> dict[str, float]:
    """Return the numbers of a row by name: train/loss, val/loss, tokens_per_second, mfu, memory (in GB) …

    Each number is also there as KIND/KEY. In a row of an evaluation, the attention comes before the key. The
    sources of the data are data/SOURCE/tokens and data/SOURCE/epochs.
    """
    kind, known = row["kind"], KNOWN.get(row["kind"], {})
    group = f"{kind}/{row['attention']}" if kind == "evaluation" else kind
    out = {}
    for key, value in row.items():
        if key == "step" or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        out[f"{group}/{key}"] = value
        if key in known:
            out[known[key]] = value
    for name, values in (row.get("sources") or {}).items():
        out |= {f"data/{name}/{key}": value for key, value in values.items()}
    return out
