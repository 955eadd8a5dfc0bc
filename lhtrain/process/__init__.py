"""The process: its home folder, standard streams, early signals and background threads."""
