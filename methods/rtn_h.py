"""Round-to-nearest on a grid that is searched for under the second moments of the inputs.

An error of a weight costs the output as much as its input is large: with H = 2/n sum x x^T, the
loss of a row is dw H dw^T, and sum_i H_ii dw_i^2 where inputs do not correlate. So the search
weights the squared errors by diag(H), as the imatrix of llama.cpp does, and every row has the grid
of the weighted or of the plain search, whichever gives it the smaller dw H dw^T. There is no error
feedback; that is `gptq`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qbench.contracts import LinearStats, Scheme
from qbench.formats import Uniform
from qbench.formats.stepped import values
from qbench.methods.error_feedback import check_damp, importance, live_hessian
from qbench.methods.gptq import OnGrid, better_rows
from qbench.methods.grids import round_to_grid, zero_as_float
from qbench.methods.rtn import RTN


@dataclass(frozen=True)
class RTNH:
    """Round each weight to the nearest point of a grid that is chosen by the inputs.

    damp: added to diag(H), as a fraction of its mean. zero_point, scale_bits: of the grid, as in
    `rtn`.
    """

    name: ClassVar[str] = "rtn-h"
    paper: ClassVar[str] = (
        "Round-to-nearest; the clip search of GPTQ, Frantar et al., ICLR 2023, arXiv:2210.17323, "
        "weighted by the inputs' second moments"
    )
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True

    damp: float = 0.01
    zero_point: Literal["integer", "real"] = "integer"
    scale_bits: int = 16

    def __post_init__(self) -> None:
        check_damp(self.damp)
        RTN(scale_bits=self.scale_bits)  # refuses what no grid can be stored with

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        """weight (out, in), Hessian (in, in): -> Uniform."""
        H = live_hessian(stats)
        W = weight.float().unflatten(1, (-1, scheme.group_length(weight.shape[1])))
        counts = importance(H, self.damp).view(W.shape[1:])  # (groups, g)
        best = better_rows(self._on_grid(W, H, None, scheme), self._on_grid(W, H, counts, scheme))
        return Uniform.from_codes(best.codes, best.scale, best.zero, scheme.bits)

    def _on_grid(self, W: Tensor, H: Tensor, counts: Tensor | None, scheme: Scheme) -> OnGrid:
        """W (out, groups, g), H (in, in), counts (groups, g) for the search or None: rounded."""
        grids = RTN(zero_point=self.zero_point, scale_bits=self.scale_bits)
        scale, zero = grids.snapped_grid(W, scheme, counts)
        s = values(scale).float()
        codes = round_to_grid(W, s, values(zero), scheme.bits)
        z = zero_as_float(s, values(zero), scheme.bits)
        change = ((codes - z[..., None]) * s[..., None] - W).flatten(1)  # dw, (out, in)
        loss = torch.einsum("oi,oi->o", change @ H, change)
        return OnGrid(codes.flatten(1), scale, zero, W.flatten(1), loss)
