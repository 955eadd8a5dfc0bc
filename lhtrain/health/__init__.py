"""Faults of a run in progress: non-finite numbers, ranks that hang or are slow, signals."""
