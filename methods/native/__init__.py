"""The innermost loops of methods, in C, for tensors on a processor."""
