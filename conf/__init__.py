"""Configuration: the YAML groups, their schema, and the rules that values must keep."""

from hydra.core.config_store import ConfigStore

from lhtrain.conf import resolvers
from lhtrain.conf.schema import Config
from lhtrain.conf.typed import own_files

resolvers.register()
own_files.register()
ConfigStore.instance().store(name="schema", node=Config)
