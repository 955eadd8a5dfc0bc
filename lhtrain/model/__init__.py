"""The decoder, its loss and its optimizer. Knows nothing of devices or parallelism."""
