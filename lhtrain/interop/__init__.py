"""A checkpoint as a folder that Hugging Face transformers loads without this package."""

from lhtrain.interop.llama import llama_config, llama_name
from lhtrain.interop.transformers_folder import export

__all__ = ["export", "llama_config", "llama_name"]
