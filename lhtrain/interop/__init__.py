"""A checkpoint as a folder that Hugging Face transformers loads without this package."""

from lhtrain.interop.folder import export
from lhtrain.interop.llama import llama_config, llama_name

__all__ = ["export", "llama_config", "llama_name"]
