"""Between tokens and kept rows: gather with pooling, scatter-back, and the backward of either."""
