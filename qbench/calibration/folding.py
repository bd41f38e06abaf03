"""Scales per channel that move from one operation into the linear layers that follow.

Dividing the channels of a norm's (or of a linear layer's) output by s, and multiplying the columns
of the layers that read it by s, changes nothing in full precision, but changes what rounding does:
the equivalent transformations of SmoothQuant (Xiao et al. 2023, arXiv:2211.10438), AWQ
(arXiv:2306.00978) and OmniQuant (arXiv:2308.13137). `folding_search.py` finds the places in a block
where this is possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qbench.contracts import Scheme


@dataclass(frozen=True, eq=False)
class Fold:
    """A place for a scale per channel, by names within the block.

    layers: the linear layers that read the same input. source: the norm or linear layer that
    computes it. channels: (in,) int64, for each input channel the output channel of the source from
    which it comes; under grouped-query attention several have the same one, and in a fused
    projection some are unused. offset: the a of a norm f(x) (a + weight); None for a linear layer.
    """

    layers: tuple[str, ...]
    source: str
    channels: Tensor
    offset: float | None = None

    def may_change(self, scheme: Scheme) -> bool:
        """Whether a scheme quantizes all of its layers, and its source."""
        layers = (*self.layers, self.source)
        return len(scheme.of_layers(layers)) == len(layers)

    def shared(self, scale: Tensor) -> Tensor:
        """(in,): the geometric mean of the scales, (in,) positive, that one channel feeds."""
        rows = int(self.channels.max()) + 1  # source channels up to the last that feeds one
        mean = scale.new_zeros(rows).scatter_reduce(
            0, self.channels, scale.log(), "mean", include_self=False
        )
        return mean[self.channels].exp()  # (in,): back to the input channels


def folded(
    block: nn.Module, fold: Fold, scale: Tensor, values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The source's parameters, by name, that divide its output by `scale`, float32.

    scale: (in,), as `Fold.shared` returns it. values: parameters to use in place of the block's
    own. Differentiable in both; the block stays as it is.
    """
    module = block.get_submodule(fold.source)
    own = _lookup(block, values)
    weight = own(f"{fold.source}.weight")
    channels = len(weight)
    if isinstance(module, Conv1D):  # (in, out)
        channels = weight.shape[1]
    # By output channel of the source; those that feed no input channel keep 1. Scales of one
    # channel are equal, so that their mean is any of them, and differentiable in all.
    divisor = scale.new_ones(channels)
    divisor = divisor.scatter_reduce(0, fold.channels, scale, "mean", include_self=False)
    # A norm gives f(x) (offset + weight), so that it is the sum that has to be divided.
    if fold.offset is not None:
        weight = (fold.offset + weight) / divisor - fold.offset
    elif isinstance(module, Conv1D):  # (in, out)
        weight = weight / divisor
    else:  # (out, in)
        weight = weight / divisor[:, None]
    parameters = {f"{fold.source}.weight": weight}
    if getattr(module, "bias", None) is not None:
        parameters[f"{fold.source}.bias"] = own(f"{fold.source}.bias") / divisor
    return parameters


def moved(
    block: nn.Module, fold: Fold, scale: Tensor, values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """`folded`, and also the weights of the layers with their columns multiplied by `scale`.

    Together they leave the block's output as it is. scale (in,) and values: see `folded`.
    """
    own = _lookup(block, values)
    parameters = folded(block, fold, scale, values)
    for name in fold.layers:
        factor = scale  # (in,), along the columns of (out, in)
        if isinstance(block.get_submodule(name), Conv1D):  # (in, out)
            factor = scale[:, None]
        parameters[f"{name}.weight"] = own(f"{name}.weight") * factor
    return parameters


def has_bias(block: nn.Module, fold: Fold) -> bool:
    """Whether the source is a norm with a bias."""
    if fold.offset is None:
        return False
    return getattr(block.get_submodule(fold.source), "bias", None) is not None


def _lookup(block: nn.Module, values: Mapping[str, Tensor] | None) -> Callable[[str], Tensor]:
    """Parameters by name, float32: of `values`, else the block's own."""

    def parameter(name: str) -> Tensor:
        if values and name in values:
            return values[name].float()
        return block.get_parameter(name).detach().float()

    return parameter
