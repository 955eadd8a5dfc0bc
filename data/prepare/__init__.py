"""A source into a folder of shards."""
