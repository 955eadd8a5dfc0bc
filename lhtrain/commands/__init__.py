"""Commands of the program, one a file; `lhtrain.cli` finds them by their first word."""
