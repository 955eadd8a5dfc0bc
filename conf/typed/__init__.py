"""Settings as they are typed, on the command line and in files of a user: text that keeps its spelling."""
