"""The ranks of a run: how they find each other, agree, exchange, and share the work."""
