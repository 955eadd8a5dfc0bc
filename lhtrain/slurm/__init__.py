"""SLURM jobs: write the script, submit it, requeue it after signals and crashes, list the runs."""
