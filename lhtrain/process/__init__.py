"""The process itself: its home, its standard streams, its threads."""
