"""The commands of the program, with their arguments, options and help. `table.py` lists them all."""
