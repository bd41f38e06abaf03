"""Kernels in C for processors."""

from qbench.kernels.cpu.products import KERNELS

__all__ = ["KERNELS"]
