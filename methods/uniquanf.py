"""UniQuanF: FlexRound's transformation, binary coding's mapping, uniform quantization's detransformation.

Kim et al. 2025, ACL, arXiv:2506.03781. With h = (2^b - 1)/2, s = e^d1, the divisor e^(d1 + d2 + d3)
of FlexRound, and the 2^b levels sum_i a_i c_i of binary coding,

    T  x = w / e^(d1 + d2 + d3) + z - h        M  q = the level nearest to x - z_B        D  w^ = s (q + z_B + h - z).

Theorem 1 (unification): D is affine per group, so w^ is plain binary coding with alpha_i = s a_i
and shift s (z_B + h - z), the same codes and nothing else. That is what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qbench.calibration.reconstruction import Groups, Reconstruction, TrainedWeight
from qbench.contracts import Scheme
from qbench.formats import Binary
from qbench.formats.packing import as_stored
from qbench.methods.alternating import Alternating, SortedGroups, alternate, level_signs
from qbench.methods.flexround import chunks, divided
from qbench.methods.greedy import greedy_planes
from qbench.methods.rtn import RTN, TINY

Mapping = Literal["exact", "local", "full"]


@dataclass(frozen=True)
class UniQuanF(Reconstruction):
    """Binary coding trained through FlexRound's transformation.

    lr: of d1, d2 and d3; None is 0.08 / 2^bits, for a weight must move in proportion to the grid's
    step to change its code. lr_alpha: of the scales (and of the shift). initialization: `unified`
    expresses one coding, fitted to the weights, in both sets of parameters; `separate` fits each on
    its own. grid, rounds: of that fit: grid 0 takes the starts of `alternating`, G > 0 tries G clip
    ratios as the authors do; then so many rounds of alternating. shift: fit z_B. learn_shift: train
    it. mapping: of weights to levels: `exact` by the midpoints of the sorted levels, `local` among
    the present level and its neighbours, `full` by the distance to each (slow, for comparison).
    period: steps from one mapping to the next, 0 for never again. gradient_filtering: no gradient
    where a weight lies further from its level than the group's smallest scale. faithful: as the
    published code does it: greedy start, no shift, neighbours in the order of the sign patterns.
    """

    name: ClassVar[str] = "uniquanf"
    paper: ClassVar[str] = "Kim et al., UniQuanF, ACL 2025, arXiv:2506.03781"
    format: ClassVar[str] = "binary"
    bits: ClassVar[tuple[int, int]] = (1, 6)
    symmetric: ClassVar[bool] = False

    lr: float | None = None
    lr_alpha: float = 5e-4
    initialization: Literal["unified", "separate"] = "unified"
    grid: int = 0
    rounds: int = 15
    shift: bool = True
    learn_shift: bool = False
    mapping: Mapping = "exact"
    period: int = 2
    gradient_filtering: bool = True
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_below(0, "grid", "rounds", "period")

    def prepare(self, weight: Tensor, scheme: Scheme) -> UniQuanFWeight:
        """(out, in) -> its parameters at the initialization."""
        method = replace(self, lr=0.08 / 2**scheme.bits if self.lr is None else self.lr)
        if self.faithful:
            method = replace(
                method, grid=self.grid or 1, shift=False, learn_shift=False, mapping="local"
            )
        group = scheme.group_length(weight.shape[1])
        rows = weight.float().reshape(-1, group)
        parts = [
            method.start(chunk, scheme.bits) for chunk in rows.split(max(1, (1 << 20) // group))
        ]
        s, z, a, zb = (torch.cat(column) for column in zip(*parts, strict=True))
        return UniQuanFWeight(rows, s, z, a, zb, weight.shape[0], method)

    def start(self, X: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(rows, g) float32 -> s (rows,), z (rows,), a (rows, b), z_B (rows,): the initialization of section 4.

        The coding (alpha, shift) of the weights is a = alpha / s, z_B = shift / s - (h - z) in the
        frame of any grid (s, z): with s x = w - s (h - z), both give the same levels.
        """
        h = (2**bits - 1) / 2
        if self.grid and self.initialization == "unified":
            s, z, alpha, shift = self._clip_grid(X, bits)
        else:
            scale, zero = RTN(zero_point="real").grid(X, Scheme(bits))
            s, z = (
                scale.float().clamp_min(TINY),
                X.new_zeros(len(X)) if zero is None else zero.float(),
            )
            centre, unified = s * (h - z), self.initialization == "unified"
            if unified and self.shift:
                alpha, shift = Alternating(self.rounds).fit(X, bits)
            else:
                alpha, _ = Alternating(self.rounds, shift=False).fit(
                    X - centre[:, None] if unified else X, bits
                )
                shift = centre
        return s, z, alpha / s[:, None], shift / s - (h - z)

    def _clip_grid(self, X: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The authors' search: for r = 1/G .. 1 keep the minimum and cut the top, fit the coding about the middle.

        The coding depends on (s, z) only through the centre s (h - z) = low + r (high - low)/2.
        Kept by |error|^2.4.
        """
        n = 2**bits - 1
        low, high = X.aminmax(dim=1)
        found: list[Tensor] = []
        best = torch.full_like(low, torch.inf)
        for step in range(1, self.grid + 1):
            s = (step / self.grid * (high - low) / n).clamp_min(TINY)
            z = -low / s
            centre = s * (n / 2 - z)
            about = X - centre[:, None]
            _, alpha, moved = greedy_planes(about, bits, False, refine=False)
            _, alpha, moved = alternate(SortedGroups(about), alpha, moved, self.rounds, self.shift)
            alpha = alpha.abs().sort(1, descending=True).values.float()
            shift = centre + moved.float()
            levels = shift[:, None] + alpha @ level_signs(bits, X.device).float().T
            error = (X - levels.gather(1, nearest(X, levels))).abs().pow(2.4).mean(1)
            better = error < best
            best = torch.where(better, error, best)
            new = [s, z, alpha, shift]
            found = [
                torch.where(better.view(-1, *[1] * (a.dim() - 1)), a, b)
                for a, b in zip(new, found or new, strict=True)
            ]
        return found[0], found[1], found[2], found[3]


class UniQuanFWeight(TrainedWeight):
    """One weight in training: d1, d3, zb (rows, 1), d2 (rows, g), a (rows, b), float32; codes (rows, g) uint8.

    A code is the pattern of signs: bit b - 1 - i is set where c_i is +1, as in `level_signs`.
    """

    def __init__(
        self,
        X: Tensor,
        s: Tensor,
        z: Tensor,
        a: Tensor,
        zb: Tensor,
        out_features: int,
        method: UniQuanF,
    ) -> None:
        """X (rows, g), s, z, zb (rows,), a (rows, b), as `UniQuanF.start` gives them."""
        super().__init__()
        self.X, self.z, self.out_features, self.method = X, z[:, None], out_features, method
        self.bits = a.shape[1]
        self.signs = level_signs(self.bits, X.device).to(X.dtype)  # (L, b)
        self.d1 = nn.Parameter(s[:, None].log())
        self.d2 = nn.Parameter(torch.zeros_like(X))
        self.d3 = nn.Parameter(torch.zeros_like(self.d1))
        self.a = nn.Parameter(a.clone())
        self.zb = nn.Parameter(zb[:, None].clone(), requires_grad=method.learn_shift)
        self.codes: Tensor | None = None
        self.calls = 0

    def forward(self) -> Tensor:
        """(out, in) float32; codes are mapped again every `period` calls."""
        if self.codes is None or (self.method.period and self.calls % self.method.period == 0):
            self.remap()
        self.calls += 1
        centre = (self.z - (2**self.bits - 1) / 2).detach()
        filtering = self.method.gradient_filtering
        args = (
            self.X,
            self.d1,
            self.d2,
            self.d3,
            self.a,
            self.zb,
            centre,
            self.codes,
            self.signs,
            filtering,
        )
        found: Tensor = _Mapped.apply(*args)
        return found.view(self.out_features, -1)

    @torch.no_grad()
    def remap(self) -> None:
        """Choose the codes for the present parameters."""
        levels = self.a @ self.signs.T  # (rows, L), in the order of the patterns
        mapping = self.method.mapping if self.codes is not None else "exact"
        codes = torch.empty_like(self.X, dtype=torch.uint8) if self.codes is None else self.codes
        offset = self.z - (2**self.bits - 1) / 2 - self.zb
        for part in chunks(self.X):
            y = divided(self.X[part], self.d1[part], self.d2[part], self.d3[part]).add_(
                offset[part]
            )
            if mapping == "exact":
                codes[part] = nearest(y, levels[part])
            elif mapping == "full":
                codes[part] = (y[..., None] - levels[part, None]).abs().argmin(-1)
            else:
                codes[part] = nearest_neighbour(y, levels[part], codes[part], self.method.faithful)
        self.codes = codes

    @torch.no_grad()
    def merged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Theorem 1: alpha (rows, b) >= 0, shift (rows,), planes bool (b, rows, g), not yet rounded to storage.

        A negative scale is a plane of opposite signs.
        """
        if self.codes is None:
            self.remap()
        codes = self.codes if self.codes is not None else torch.empty(0)
        s = self.d1.exp()
        alpha, shift = s * self.a, s * (self.zb + (2**self.bits - 1) / 2 - self.z)
        places = range(self.bits - 1, -1, -1)
        planes = torch.stack(
            [
                ((codes >> place) & 1).bool() ^ (alpha[:, i, None] < 0)
                for i, place in enumerate(places)
            ]
        )
        return alpha.abs(), shift[:, 0], planes

    def export(self) -> Binary:
        """Plain binary coding, with the codes that the present parameters choose."""
        if self.method.period:
            self.remap()
        alpha, shift, planes = self.merged()
        groups = (self.out_features, -1)
        return Binary.from_planes(
            planes.view(self.bits, *groups),
            as_stored(alpha.view(*groups, self.bits)),
            as_stored(shift.view(groups)),
        )

    def groups(self) -> Groups:
        """Two rates, as in the authors' code."""
        shift = [self.zb] if self.method.learn_shift else []
        return [
            {"params": [self.d1, self.d2, self.d3], "lr": self.method.lr},
            {"params": [self.a, *shift], "lr": self.method.lr_alpha},
        ]


class _Mapped(torch.autograd.Function):
    """w^ from given codes, with the straight-through estimate dq/dx = 1 and gradient filtering.

    With v = w / e^(d1 + d2 + d3), l the level of the weight, G = dL/dw^, and m = 0 where filtering is on and
    |x - z_B - l| > min_i |a_i|, else 1 (section 4.3):
    dL/da_i = sum m G s c_i;  dL/dd2 = -m G s v;  dL/dd3 = the sum of it;  dL/dd1 = sum G w^ + dL/dd3;
    dL/dz_B = sum G s.
    Nothing of the weight's size is kept for the backward pass but the codes, one byte each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        d1: Tensor,
        d2: Tensor,
        d3: Tensor,
        a: Tensor,
        zb: Tensor,
        centre: Tensor,
        codes: Tensor,
        signs: Tensor,
        filtering: bool,
    ) -> Tensor:
        ctx.save_for_backward(X, d1, d2, d3, a, zb, centre, signs)
        ctx.codes, ctx.filtering = codes, filtering
        values = (
            (a @ signs.T).add_(zb - centre).mul_(d1.exp())
        )  # (rows, L): the weight that each code stands for
        found = torch.empty_like(X)
        for part in chunks(X):
            torch.gather(values[part], 1, codes[part].long(), out=found[part])
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        X, d1, d2, d3, a, zb, centre, signs = ctx.saved_tensors
        G, s, levels = grads[0], d1.exp(), a @ signs.T
        reach = a.abs().amin(1, keepdim=True)
        g1, g2, g3, gb = (
            torch.empty_like(d1),
            torch.empty_like(d2),
            torch.empty_like(d3),
            torch.empty_like(zb),
        )
        by_level = torch.zeros_like(levels)  # sum of m G s over the weights of each level
        for part in chunks(X):
            code = ctx.codes[part].long()
            v = divided(X[part], d1[part], d2[part], d3[part])
            level = levels[part].gather(1, code)
            scaled = G[part] * s[part]
            gb[part] = scaled.sum(1, keepdim=True)
            g1[part] = (scaled * level).sum(1, keepdim=True)
            if ctx.filtering:
                near = (v + (centre[part] - zb[part])).sub_(level).abs_() <= reach[part]
                scaled.mul_(near)
            by_level[part].scatter_add_(1, code, scaled)
            g2[part] = v.mul_(scaled).neg_()
            g3[part] = g2[part].sum(1, keepdim=True)
        g1 += g3 + gb * (zb - centre)
        return None, g1, g2, g3, by_level @ signs, gb, None, None, None, None


def nearest(y: Tensor, levels: Tensor) -> Tensor:
    """Indices (rows, n), int64, of the nearest of `levels` (rows, L) in any order, L a power of two, to y (rows, n).

    Exact: b comparisons with midpoints of the sorted levels, by bisection.
    """
    ordered, order = levels.sort(1)
    middle = (ordered[:, 1:] + ordered[:, :-1]) / 2
    step = levels.shape[1] // 2
    rank = (y > middle[:, step - 1, None]).long().mul_(step)
    while step > 1:
        step //= 2
        rank += (y > middle.gather(1, rank + (step - 1))).long().mul_(step)
    return order.gather(1, rank)


def nearest_neighbour(y: Tensor, levels: Tensor, codes: Tensor, by_pattern: bool) -> Tensor:
    """Of the present level and its two neighbours the nearest: (rows, n) y, (rows, L), (rows, n) uint8 -> int64.

    Neighbours in the order of the values; `by_pattern`, as in the published code, in the order of
    the sign patterns, which is another one wherever a scale is smaller than the sum of the later
    ones.
    """
    order = (
        torch.arange(levels.shape[1], device=y.device).expand_as(levels)
        if by_pattern
        else levels.argsort(1)
    )
    rank = order.argsort(1).gather(1, codes.long())
    best = torch.full_like(y, torch.inf)
    chosen = codes.long()
    for move in (-1, 0, 1):
        index = order.gather(1, (rank + move).clamp_(0, levels.shape[1] - 1))
        distance = (y - levels.gather(1, index)).abs_()
        closer = distance < best
        best, chosen = torch.where(closer, distance, best), torch.where(closer, index, chosen)
    return chosen
