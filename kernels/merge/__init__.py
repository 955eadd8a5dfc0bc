"""Exact local attention and the selected rows, merged into one softmax by their logsumexps."""
