"""Import and export of models of Hugging Face transformers, which loads them without lhtrain."""

from lhtrain.interop.config_json import config_json
from lhtrain.interop.families import published_name
from lhtrain.interop.transformers_folder import export

__all__ = ["config_json", "export", "published_name"]
