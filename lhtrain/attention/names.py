"""Names that settings and `lighthouse_attention` share. Without torch: checking a setting is then quick."""

from lhtrain.registry import BACKENDS as BACKENDS

SCORERS = ("norm",)
