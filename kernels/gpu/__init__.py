"""Kernels in Triton for GPUs; triton itself is imported with the first product."""

from qbench.kernels.gpu.products import KERNELS

__all__ = ["KERNELS"]
