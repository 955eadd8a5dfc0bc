"""From tokens to selected rows and back: gather with pooling, scatter-back, and both backward passes."""
