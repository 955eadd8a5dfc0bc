"""Sources that are tokenized while a run trains on them (data.prepare=during)."""
