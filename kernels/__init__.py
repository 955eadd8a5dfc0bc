"""GPU kernels of the Lighthouse layer, one folder an operation; `ops` puts them together for autograd."""
