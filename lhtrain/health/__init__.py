"""Faults during training: losses that are not finite, ranks that hang or are slow, signals."""
