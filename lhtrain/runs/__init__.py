"""Run directories: starting, resuming and extending a run."""
