"""`lhtrain export`: a checkpoint as a folder that Hugging Face transformers loads without this package."""

from lhtrain.export.command import main
from lhtrain.export.folder import export

__all__ = ["export", "main"]
