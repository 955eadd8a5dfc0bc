"""Preparing data: from a source to a folder of shards."""
