"""Export of checkpoints to folders that Hugging Face transformers loads without lhtrain."""

from lhtrain.interop.llama import llama_config, llama_name
from lhtrain.interop.transformers_folder import export

__all__ = ["export", "llama_config", "llama_name"]
