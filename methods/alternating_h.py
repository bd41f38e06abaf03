"""Alternating binary coding under the curvature of the layer's loss; nothing is trained.

First, alternating least squares, in which an error of input j counts H_jj, gives the levels. The
numbers that are stored are then snapped to integers times a step per row. Then GPTQ's error
feedback (arXiv:2210.17323) goes over the columns by decreasing H_jj, with the nearest level in
place of the nearest point of a grid. At last, levels and codes can be fitted to each other again,
in the whole Hessian (`refits`).

The nearest published relatives: BPDQ (ICML 2026, arXiv:2602.04163) fits its scales inside the loop,
group by group on compensated weights in the metric of the group's conditional Hessian, from the
planes of an 8-bit grid; here all levels are fixed before the first column is rounded, so that
columns go in any order and the snapped scales are those that the feedback sees. LNQ (GuidedQuant,
arXiv:2505.07004) alternates between exact least squares for free levels of a whole row, in the full
Hessian, and coordinate descent for the codes, from k-means; the refits here do the same for levels
that are sums of b scales in every group, snapped each time, after the feedback. Neither snaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qbench.contracts import LinearStats, Scheme
from qbench.errors import require_at_least
from qbench.formats import Binary, RotatedBinary
from qbench.formats.rotated_binary import rotated
from qbench.formats.snapping import check_scale_bits
from qbench.formats.stepped import values
from qbench.methods.curvature import CurvatureCoding, curvature_start
from qbench.methods.error_feedback import check_damp
from qbench.methods.levels import nearest_planes
from qbench.methods.rotation import input_signs, rotated_stats
from qbench.methods.stored_numbers import default_scale_bits


@dataclass(frozen=True)
class AlternatingH:
    """Curvature-weighted binary coding with error feedback.

    rounds: at most so many least-squares steps, beside one at the end.
    refits: at most so many fits of levels and codes to each other under the whole Hessian; they end
        when one does not lower the layer's loss.
    damp: added to the diagonal of the Hessian, as a fraction of its mean.
    scale_bits: bits of the largest scale; smaller ones have fewer. 16 is half precision, None the
        number of `default_scale_bits`.
    rotate: code the weight for rotated inputs (`rotation.py`).
    """

    name: ClassVar[str] = "alternating-h"
    paper: ClassVar[str] = (
        "alternating coding (Xu et al., arXiv:1802.00150) under GPTQ's curvature "
        "(arXiv:2210.17323); of this project"
    )
    format: ClassVar[str] = "binary"
    bits: ClassVar[tuple[int, int]] = (1, 6)
    symmetric: ClassVar[bool] = False

    rounds: int = 8
    refits: int = 0
    damp: float = 0.05
    scale_bits: int | None = None
    rotate: bool = False

    def __post_init__(self) -> None:
        require_at_least("rounds", self.rounds, 0)
        require_at_least("refits", self.refits, 0)
        check_damp(self.damp)
        if self.scale_bits is not None:
            check_scale_bits(self.scale_bits)

    def quantize_linear(
        self, weight: Tensor, stats: LinearStats, scheme: Scheme
    ) -> Binary | RotatedBinary:
        """weight (out, in), Hessian (in, in): -> coding, `RotatedBinary` where it is to be rotated.

        MethodError where no damping makes the Hessian positive definite.
        """
        if self.rotate:
            s = input_signs(weight)
            coding = self._coded(rotated(weight.float(), s), rotated_stats(stats, s), scheme)
            return RotatedBinary.from_coding(coding, s)
        return self._coded(weight, stats, scheme)

    def _coded(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Binary:
        scale_bits = self.scale_bits or default_scale_bits(scheme.bits)
        coding = CurvatureCoding(self.rounds, self.refits, self.damp, scale_bits)
        start = curvature_start(weight, stats, scheme, coding)
        group = scheme.group_length(weight.shape[1])
        planes = nearest_planes(
            start.values.reshape(-1, group),
            values(start.alpha).float().flatten(0, 1),
            values(start.shift).float().flatten(),
        )  # (b, out * groups, g)
        planes = planes.view(scheme.bits, *weight.shape)
        return Binary.from_planes(planes, start.alpha, start.shift)
