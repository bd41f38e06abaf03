"""Kernels in CUDA C++ for NVIDIA GPUs; their sources are compiled when a product first needs them.

toolchain     a source and its macros -> machine code, by NVRTC, kept on the disk
launch        machine code -> functions of a GPU, launched on torch's stream
layout        what the kernels read, derived from a weight
products      which kernel computes what, and how
"""
