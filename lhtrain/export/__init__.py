"""`lhtrain export`: a checkpoint as a folder that Hugging Face transformers loads without this package."""

from lhtrain.export.command import main
from lhtrain.export.folder import export
from lhtrain.export.llama import llama_config, llama_name

__all__ = ["export", "llama_config", "llama_name", "main"]
