"""The Lighthouse layer's operations, one folder each: reference and GPU kernel. `ops`: PyTorch operators."""
