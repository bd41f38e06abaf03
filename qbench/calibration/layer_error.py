"""The error of a quantized layer, in one number."""

from __future__ import annotations

import math

from torch import Tensor


def relative_error(
    weight: Tensor, quantized: Tensor, hessian: Tensor | None = None
) -> float | None:
    """tr(dW H dW^T) / tr(W H W^T), to six digits, dW = W - Q; with H the identity of the weights.

    weight, quantized (out, in): W and Q. hessian (in, in): second moments of the layer's input, of
    any scale; with it, this is the error of the layer's output. The result is None where it is not
    finite, as for a layer that no token reaches.
    """
    W = weight.float()
    dW = W - quantized.float()
    lost = _power(dW, hessian)
    whole = _power(W, hessian)
    if not whole > 0 or not math.isfinite(lost / whole):
        return None
    return float(f"{max(0.0, lost / whole):.6g}")


def _power(W: Tensor, hessian: Tensor | None) -> float:
    """tr(W H W^T)."""
    product = W if hessian is None else W @ hessian.to(W)
    return float((product * W).sum(dtype=W.dtype))
