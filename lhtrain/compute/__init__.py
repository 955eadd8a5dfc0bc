"""Device, precision, recomputation, compilation and float8; estimates of memory, FLOPs and cost."""
