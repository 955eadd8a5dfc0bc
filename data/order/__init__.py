"""Which tokens a step reads: pure functions of seed and position."""
