"""The directory of a run, and how a run starts, continues and is extended."""
