"""Runs as SLURM jobs: rendered, submitted, kept going through time limits, preemptions, crashes; listed."""
