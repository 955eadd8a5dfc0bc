"""Names that settings and `lighthouse_attention` share. Without torch: checking a setting is then quick."""

SCORERS = ("norm",)
BACKENDS = ("auto", "reference", "triton")
