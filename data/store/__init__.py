"""Tokens on disk: folders of shards, their manifest, checks and cache."""
