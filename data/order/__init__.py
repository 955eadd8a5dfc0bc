"""The tokens that each step reads, as pure functions of seed and position."""
