"""The decoder, its loss and its optimizer. Nothing here depends on devices or parallelism."""
