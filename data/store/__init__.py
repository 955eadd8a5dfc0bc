"""Tokens on disk: token files (shards), meta.json, checksums and the cache."""
