"""Settings as typed, on the command line and in the user's files: text values keep their spelling."""
