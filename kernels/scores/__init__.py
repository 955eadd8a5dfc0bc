"""Norm scores, max-pooled to every level above the sequence."""
