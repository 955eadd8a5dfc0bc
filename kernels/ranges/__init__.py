"""Attention of each query to one range of keys: what strictly causal Lighthouse layers are made of."""
