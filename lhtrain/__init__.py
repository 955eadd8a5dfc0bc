"""lhtrain: pre-training for long contexts with Lighthouse Attention."""

__version__ = "0.1.0"
