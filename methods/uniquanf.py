"""UniQuanF: binary coding between the transformation of FlexRound and its inverse.

Kim et al. 2025, ACL, arXiv:2506.03781. Per group, with h = (2^b - 1)/2, the step s = e^d1 and the
zero point z of a uniform grid, the divisor e^(d1 + d2 + d3) of FlexRound, and the 2^b levels
sum_i a_i c_i, c_i in {-1, +1}, of binary coding with the shift z_B,

    T  x = w / e^(d1 + d2 + d3) + z - h
    M  q = the level nearest to x - z_B
    D  w^ = s (q + z_B + h - z).

Theorem 1 (unification): D is affine per group, so w^ is plain binary coding with alpha_i = s a_i
and shift s (z_B + h - z), the same codes and nothing else. That is what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qbench.calibration.reconstruction import Reconstruction
from qbench.contracts import BlockInputs, BlockResult, LinearStats, Scheme
from qbench.formats.rotated_binary import rotated
from qbench.formats.snapping import check_scale_bits
from qbench.formats.stepped import values
from qbench.methods.alternating import Alternating, alternate
from qbench.methods.curvature import CurvatureCoding, curvature_start
from qbench.methods.error_feedback import check_damp
from qbench.methods.greedy import fit_scales, greedy_planes
from qbench.methods.grids import TINY, row_slices, where_rows
from qbench.methods.level_mapping import Filter
from qbench.methods.levels import Coding, levels_of, nearest
from qbench.methods.mapped_weight import Mapping, Start, UniQuanFWeight, in_its_own_frame
from qbench.methods.rotation import RotatedWeight, input_signs, rotated_stats
from qbench.methods.rtn import RTN
from qbench.methods.sorted_groups import SortedGroups
from qbench.methods.storable import storable_coding
from qbench.methods.stored_numbers import Steps, default_scale_bits, stored_numbers

CHUNK = 1 << 20  # weights initialized at a time on a CPU: bounds the temporaries
PUBLISHED_LR = 5e-3  # of the transformation, in the published script
PUBLISHED_LR_ALPHA = 5e-4  # of the scales
PUBLISHED_LOSS = {"loss": "mse", "mixing": 0.5, "head": 0.0}


@dataclass(frozen=True)
class UniQuanF(Reconstruction):
    """Binary coding trained through FlexRound's transformation.

    lr: learning rate of d1, d2 and d3. None is 0.002 from the start `curvature`, since a larger
        rate destroys its codes; else 0.08 / 2^bits, since a weight must move in proportion to the
        grid's step to change its code.
    lr_alpha: learning rate of the scales and of the shift.
    initialization: `curvature` codes the weight as `alternating-h` does, and trains its compensated
        values; `unified` fits one coding to the weights alone, and expresses it in both sets of
        parameters; `separate` fits each set on its own, and is far off where groups of weights do
        not lie about zero.
    scale_bits: of the stored numbers, as in `alternating-h`; training sees them as they are stored.
    damp, refits: of `curvature`, as in `alternating-h`.
    grid: without `curvature`, 0 takes the starts of `alternating`, and G > 0 tries G clip ratios as
        the authors do.
    rounds: of alternating.
    shift: without `curvature`, fit z_B.
    learn_shift: train the shift.
    mapping: how weights find their levels. `exact`: by the midpoints of the sorted levels; `local`:
        the present level or one of its neighbours; `full`: by the distance to each (slow).
    period: steps from one mapping to the next, 0 for never again.
    gradient_filtering: a weight has no gradient where it is further than the group's smallest scale
        from its level (`distance`, as published), or from the range of all levels (`range`).
    rotate: code the weight for rotated inputs (`rotation.py`).
    faithful: do as the published code does: its start, rates, filter, mapping and stored numbers,
        and training on all batches; and its `lr`, `loss`, `mixing` and `head` where these have
        their defaults.
    """

    name: ClassVar[str] = "uniquanf"
    paper: ClassVar[str] = "Kim et al., UniQuanF, ACL 2025, arXiv:2506.03781"
    format: ClassVar[str] = "binary"
    bits: ClassVar[tuple[int, int]] = (1, 6)
    symmetric: ClassVar[bool] = False
    published_mapping: ClassVar[Mapping] = "local"

    epochs: int = 2
    lr: float | None = None
    lr_alpha: float = 5e-3
    initialization: Literal["curvature", "unified", "separate"] = "curvature"
    scale_bits: int | None = None
    damp: float = 0.05
    grid: int = 0
    rounds: int = 15
    refits: int = 0
    shift: bool = True
    learn_shift: bool = True
    mapping: Mapping = "exact"
    period: int = 2
    gradient_filtering: Filter = "range"
    rotate: bool = False
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_below(0, "grid", "rounds", "refits", "period")
        check_damp(self.damp)
        if self.scale_bits is not None:
            check_scale_bits(self.scale_bits)

    def quantize_block(
        self, block: nn.Module, inputs: BlockInputs, targets: list[Tensor], scheme: Scheme
    ) -> BlockResult:
        """As in `Reconstruction`, targets too, for the method that `faithful` makes of this one."""
        method = self.decided(scheme.bits) if self.faithful else self
        return Reconstruction.quantize_block(method, block, inputs, targets, scheme)

    def decided(self, bits: int) -> UniQuanF:
        """The method with every parameter that the bits or `faithful` decide set."""
        if self.faithful:
            return replace(
                self,
                lr=PUBLISHED_LR if self.lr is None else self.lr,
                lr_alpha=PUBLISHED_LR_ALPHA,
                initialization="unified",
                scale_bits=16,
                grid=self.grid or 1,
                shift=False,
                learn_shift=False,
                mapping=self.published_mapping,
                gradient_filtering="distance",
                holdout=0.0,
                **self._published_loss(),
            )
        lr = self.lr
        if lr is None:
            lr = 0.002 if self.initialization == "curvature" else 0.08 / 2**bits
        scale_bits = default_scale_bits(bits) if self.scale_bits is None else self.scale_bits
        return replace(self, lr=lr, scale_bits=scale_bits)

    def _published_loss(self) -> dict[str, Any]:
        """The published loss, for those of its parameters that have their defaults here."""
        published = {}
        for name, value in PUBLISHED_LOSS.items():
            if getattr(self, name) == getattr(type(self), name):
                published[name] = value
        return published

    def prepare(
        self, weight: Tensor, scheme: Scheme, stats: LinearStats | None = None
    ) -> UniQuanFWeight | RotatedWeight:
        """weight (out, in), floating: -> its parameters at the initialization, float32.

        stats: of the layer's inputs; None assumes uncorrelated inputs of equal size. MethodError
        where no damping makes the Hessian positive definite.
        """
        if not self.rotate:
            return self._unrotated(weight, scheme, stats)
        s = input_signs(weight)
        seen = None if stats is None else rotated_stats(stats, s)
        return RotatedWeight(self._unrotated(rotated(weight.float(), s), scheme, seen), s)

    def _unrotated(
        self, weight: Tensor, scheme: Scheme, stats: LinearStats | None
    ) -> UniQuanFWeight:
        method = self.decided(scheme.bits)
        assert method.scale_bits is not None
        out = weight.shape[0]
        group = scheme.group_length(weight.shape[1])
        if method.initialization == "curvature":
            coding = CurvatureCoding(method.rounds, method.refits, method.damp, method.scale_bits)
            coded = curvature_start(weight, stats, scheme, coding)
            start = in_its_own_frame(
                values(coded.alpha).float().flatten(0, 1), values(coded.shift).float().flatten()
            )
            steps = Steps.of(coded.alpha, coded.shift)
            rows = coded.values.reshape(-1, group)
            return UniQuanFWeight(rows, start, out, method, steps)
        rows = weight.float().reshape(-1, group)  # (out * groups, g)
        parts = []
        for part in row_slices(rows, CHUNK):
            parts.append(method.start(rows[part], scheme.bits))
        start = Start(*(torch.cat(column) for column in zip(*parts, strict=True)))
        alpha = (start.s[:, None] * start.a).view(out, -1, scheme.bits)
        h = (2**scheme.bits - 1) / 2
        shift = (start.s * (start.zb + h - start.z)).view(out, -1)
        steps = Steps.of(*stored_numbers(alpha, shift, method.scale_bits))
        if steps is not None and method.initialization == "unified":
            alphas, shifts = storable_coding(weight.float(), [(alpha, shift)], method.scale_bits)
            assert shifts is not None  # as one was given
            start = start.recoded(values(alphas).float().flatten(0, 1), values(shifts).flatten())
        return UniQuanFWeight(rows, start, out, method, steps)

    def start(self, X: Tensor, bits: int) -> Start:
        """X (rows, g) float32: -> the initialization of section 4 for each row.

        A coding (alpha, shift) of the weights is a = alpha / s, z_B = shift / s - (h - z) in the
        frame of any grid (s, z). Before training w = s (x + h - z), so that
        w = shift + sum alpha_i c_i is x = shift / s - (h - z) + sum (alpha_i / s) c_i.
        """
        h = (2**bits - 1) / 2
        if self.grid and self.initialization == "unified":
            s, z, alpha, shift = self._clip_grid(X, bits)
            return Start(s, z, alpha / s[:, None], shift / s - (h - z))
        scale, zero = RTN(zero_point="real").grid(X, Scheme(bits))
        s = scale.float().clamp_min(TINY)
        z = X.new_zeros(len(X)) if zero is None else zero.float()
        alpha, shift = self._coding(X, bits, s * (h - z))
        return Start(s, z, alpha / s[:, None], shift / s - (h - z))

    def _coding(self, X: Tensor, bits: int, centre: Tensor) -> Coding:
        """alpha (rows, b) and shift (rows,) of X (rows, g), centre s (h - z) (rows,) of the grid.

        Without a fitted shift, the levels lie about the centre of the grid; `separate` fits the
        scales to the weights as they are, that is about zero.
        """
        if self.initialization == "unified" and self.shift:
            return Alternating(self.rounds).fit(X, bits)
        unshifted = Alternating(self.rounds, shift=False)
        if self.initialization == "unified":
            alpha, _ = unshifted.fit(X - centre[:, None], bits)
        else:
            alpha, _ = unshifted.fit(X, bits)
        return alpha, centre

    def _clip_grid(self, X: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The authors' search over clip ratios: s, z (rows,), alpha (rows, b), shift (rows,).

        For r = 1/G .. 1 keep the minimum and cut the top, and fit the coding about the middle. The
        coding depends on (s, z) only through that middle, s (h - z) = low + r (high - low)/2. Of
        all r, the least mean |error|^2.4 of the group is kept.
        """
        n = 2**bits - 1
        low, high = X.aminmax(dim=1)

        def clipped(ratio: float) -> tuple[Tensor, ...]:
            # The levels s (k - z), k = 0 .. n, run from the minimum to low + r (high - low).
            s = (ratio * (high - low) / n).clamp_min(TINY)
            z = -low / s
            alpha, shift = self._coding_about(X, s * (n / 2 - z), bits)
            levels = levels_of(alpha, shift)  # (rows, L)
            error = (X - levels.gather(1, nearest(X, levels))).abs().pow(2.4).mean(1)
            return error.nan_to_num(nan=torch.inf, posinf=torch.inf), s, z, alpha, shift

        best = clipped(1 / self.grid)
        for step in range(2, self.grid + 1):
            trial = clipped(step / self.grid)
            best = tuple(where_rows(trial[0] < best[0], trial, best))
        _, s, z, alpha, shift = best
        return s, z, alpha, shift

    def _coding_about(self, X: Tensor, centre: Tensor, bits: int) -> Coding:
        """Greedy coding of X - centre, then alternating: alpha (rows, b) descending, and shift.

        As many least-squares steps as `rounds`, the first of them for the greedy codes.
        """
        about = X - centre[:, None]
        planes, alpha, moved = greedy_planes(about, bits, False, refine=False)
        if self.rounds:
            alpha, moved = fit_scales(about, torch.stack([*planes], -1) * 2.0 - 1, self.shift)
        if self.rounds > 1:
            # It ends with one step more than its rounds.
            group = SortedGroups.of(about)
            _, alpha, moved = alternate(group, alpha, moved, self.rounds - 2, self.shift)
        alpha = alpha.abs().sort(1, descending=True).values.float()
        return alpha, centre + moved.float()
