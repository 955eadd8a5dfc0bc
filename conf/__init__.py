"""Configuration: the YAML presets, the schema of the keys, and the rules for their values."""

from hydra.core.config_store import ConfigStore

from lhtrain.conf import resolvers
from lhtrain.conf.schema import Config
from lhtrain.conf.typed import own_files

resolvers.register()
own_files.register()
ConfigStore.instance().store(name="schema", node=Config)
