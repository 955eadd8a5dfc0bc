"""Settings of a model that decide what its weights mean, beyond their shapes."""

from typing import Any

# With other values the same shapes hold other heads.
LAYOUT = ("n_heads", "n_kv_heads", "head_dim")
# Weights keep their meaning, and were trained for another value: changed on purpose for longer contexts.
TRAINED_FOR = ("rope_theta", "norm_eps")


def differing_settings(saved: dict[str, Any], now: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """Those of `keys` whose values differ between two model configurations, as 'model.key: saved -> now'."""
    return [
        f"model.{key}: {saved[key]} -> {now.get(key)}"
        for key in keys
        if key in saved and saved[key] != now.get(key)
    ]
