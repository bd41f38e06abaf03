"""The dtypes of a calibration: of the matrix products, and of what is on the device for them."""

from __future__ import annotations

import torch
from torch import Tensor


def products_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """A context in which matrix products are computed in this dtype.

    It has no cache: that would hold on to low-precision copies of weights that have been replaced.
    """
    low = dtype != torch.float32
    return torch.autocast(device.type, dtype, enabled=low, cache_enabled=False)


def on_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """A tensor on the device, for matrix products in this dtype; itself where it is so already.

    It is in float32 where the products are. Its own dtype will do for all others: autocast rounds
    what it multiplies.
    """
    if dtype == torch.float32 and tensor.is_floating_point():
        return tensor.to(device, torch.float32)
    return tensor.to(device)
