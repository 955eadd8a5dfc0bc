"""The page of `lhtrain report`: one HTML file that needs nothing else."""
