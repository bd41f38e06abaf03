"""Kernels for GPUs: in CUDA C++ for NVIDIA's, and in Triton for all that it knows.

Triton itself is imported, and CUDA's sources are compiled, with the first product.
"""

from qbench.kernels.gpu import products
from qbench.kernels.gpu.cuda import products as cuda

KERNELS = (*cuda.KERNELS, *products.KERNELS)

__all__ = ["KERNELS"]
