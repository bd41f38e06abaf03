"""What the GPU kernels compute and cost on a machine with a GPU: see `__main__`."""
