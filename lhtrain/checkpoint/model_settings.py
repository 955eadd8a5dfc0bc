"""Settings of a model that change the meaning of its weights and not their shapes."""

from typing import Any

# With other values, tensors of the same shape are divided into different heads.
LAYOUT = ("n_heads", "n_kv_heads", "head_dim")
# The weights keep their meaning but were trained with these values. Longer contexts change them on purpose.
TRAINED_FOR = (
    *("seq_len", "rope_theta", "rope_scaling", "norm_eps"),
    *("dense_layers", "sliding_window", "sliding_layers"),
)


def differing_settings(saved: dict[str, Any], now: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """Return a line 'model.key: saved -> now' for each of `keys` that differs between two configurations."""
    # Checkpoints of earlier versions lack these.
    defaults: dict[str, Any] = {"rope_scaling": None, "sliding_window": None, "sliding_layers": []}
    defaults |= {"dense_layers": []}
    saved, now = defaults | saved, defaults | now
    return [
        f"model.{key}: {saved[key]} -> {now.get(key)}"
        for key in keys
        if key in saved and saved[key] != now.get(key)
    ]
