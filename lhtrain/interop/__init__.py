"""`lhtrain export`: a checkpoint as a folder that Hugging Face transformers loads without this package."""

from lhtrain.commands.export import main
from lhtrain.interop.folder import export
from lhtrain.interop.llama import llama_config, llama_name

__all__ = ["export", "llama_config", "llama_name", "main"]
