"""The commands of the program: `table.py` lists them, the other modules implement them."""
