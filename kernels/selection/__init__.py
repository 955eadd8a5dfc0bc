"""Which entries are kept, in attention order, and the map from entry to place."""
