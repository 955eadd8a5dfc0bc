"""Rules for values, for values together, and for the files and devices of this machine."""
