"""What goes wrong while a run trains: numbers, ranks that hang or are slow, signals."""
