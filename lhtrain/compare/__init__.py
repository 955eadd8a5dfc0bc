"""Reads finished, running and damaged runs, and compares them."""
