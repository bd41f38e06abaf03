"""Scales between layers in training: OmniQuant's learnable equivalent transformation (LET).

Equation 3 of Shao et al. 2024, arXiv:2308.13137, without its shift, as `omniquant.py` explains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qbench.calibration.folding import Fold, moved
from qbench.calibration.training import Groups
from qbench.contracts import BlockResult, Scheme
from qbench.methods.migration import SMALLEST
from qbench.models.blocks import as_kept, linears, read_weight

if TYPE_CHECKING:
    from qbench.methods.omniquant import OmniQuant


class Transformed:
    """A block with LET in training: a `Trainable`.

    logs: for each fold, the logarithms of its scales, (channels of the source,) float32. weights:
    the learned clips of all linear layers, by name.
    """

    def __init__(
        self,
        block: nn.Module,
        method: OmniQuant,
        scheme: Scheme,
        folds: list[Fold],
        scales: list[Tensor],
        products: torch.dtype | None = None,
    ) -> None:
        """scales: (in,) at the start, shared as the folds demand. products: as in `Weights`."""
        self.block = block
        self.folds = folds
        self.lr = method.lr_let
        self.logs = []
        for fold, scale in zip(folds, scales, strict=True):
            # Several inputs of a layer may come from one channel of the source; `shared` has given
            # them one scale, so that it does not matter which of them is written last.
            sources = scale.new_zeros(int(fold.channels.max()) + 1)
            sources[fold.channels] = fold.shared(scale).log()
            self.logs.append(nn.Parameter(sources))
        values = self._values()
        self.weights = {}
        for name, asked in scheme.of_layers(linears(block)).items():
            weight = method.prepare(self._weight(name, values), asked)
            weight.products = products
            self.weights[name] = weight

    def substitutes(self) -> dict[str, Tensor]:
        """Sources divided by the scales, and the rounding of all transformed weights."""
        values = self._values()
        substitutes = dict(values)
        for name, weight in self.weights.items():
            rounded = weight(self._weight(name, values))
            substitutes[f"{name}.weight"] = as_kept(self.block.get_submodule(name), rounded)
        return substitutes

    @torch.no_grad()
    def export(self) -> BlockResult:
        """The rounded weights, and the other parameters that the folds change."""
        values = self._values()
        weights = {}
        for name, weight in self.weights.items():
            weights[name] = weight.export(self._weight(name, values))
            values.pop(f"{name}.weight", None)  # given as a quantized weight instead
        return BlockResult(weights, values)

    def groups(self) -> Groups:
        """The scales at the rate `lr_let`, the clips at theirs."""
        groups: Groups = [{"params": self.logs, "lr": self.lr}]
        for weight in self.weights.values():
            groups += weight.groups()
        return groups

    def _values(self) -> dict[str, Tensor]:
        """Parameters that the folds change, by name, before any rounding; differentiable."""
        values: dict[str, Tensor] = {}
        for fold, log in zip(self.folds, self.logs, strict=True):
            scale = log[fold.channels].exp().clamp_min(SMALLEST)  # (in,)
            values |= moved(self.block, fold, scale, values)
        return values

    def _weight(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        """A layer's weight (out, in) float32: the transformed one where a fold changes it."""
        layer = self.block.get_submodule(name)
        W = values.get(f"{name}.weight")
        if W is None:
            return read_weight(layer).float()
        return as_kept(layer, W)
