"""One weight of UniQuanF in training: T, M and D of `uniquanf.py`, and theorem 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from qbench.calibration.fused import over_rows
from qbench.calibration.reconstruction import TrainedWeight, straight_through
from qbench.calibration.training import Groups
from qbench.formats import Binary
from qbench.methods.flexround import divided
from qbench.methods.grids import TINY
from qbench.methods.level_mapping import MappedWeight, nearest_neighbour
from qbench.methods.levels import level_signs, ranked, sorted_midpoints
from qbench.methods.stored_numbers import Steps, in_storage

if TYPE_CHECKING:
    from qbench.methods.uniquanf import UniQuanF

Mapping = Literal["exact", "local", "full"]


class Start(NamedTuple):
    """The initialization of a group's parameters: s, z, z_B (rows,) and a (rows, b), float32."""

    s: Tensor
    z: Tensor
    a: Tensor
    zb: Tensor

    def recoded(self, alpha: Tensor, shift: Tensor) -> Start:
        """Another coding, alpha (rows, b) and shift (rows,), in the frame of the same grid."""
        h = (2 ** alpha.shape[1] - 1) / 2
        return Start(self.s, self.z, alpha / self.s[:, None], shift / self.s - (h - self.z))


def in_its_own_frame(alpha: Tensor, shift: Tensor) -> Start:
    """alpha (rows, b), shift (rows,), float32, of levels that take the place of a grid.

    The grid whose first and last point are the outermost levels: s (2^b - 1) = 2 sum alpha_i, and
    z_B = 0 where its middle s (h - z) is the shift.
    """
    n = 2 ** alpha.shape[1] - 1
    s = (2 / n * alpha.sum(1)).clamp_min(TINY)
    return Start(s, n / 2 - shift / s, alpha / s[:, None], torch.zeros_like(s))


class UniQuanFWeight(TrainedWeight):
    """One weight in training, rows = out * groups.

    Parameters, float32: d1, d3, zb (rows, 1), d2 (rows, g), a (rows, b). codes (rows, g) uint8:
    the pattern of signs of each weight, as in `levels.py`; None before the first call.
    """

    def __init__(
        self,
        X: Tensor,
        start: Start,
        out_features: int,
        method: UniQuanF,
        steps: Steps | None = None,
    ) -> None:
        """X (rows, g): the weights that are mapped. method: with a rate (`UniQuanF.decided`).

        steps: what alpha and shift are multiples of, None in half precision.
        """
        super().__init__()
        self.X = X
        self.z = start.z[:, None]
        self.out_features = out_features
        self.method = method
        self.steps = steps
        self.bits = start.a.shape[1]
        self.h = (2**self.bits - 1) / 2
        self.signs = level_signs(self.bits, X.device).to(X.dtype)  # (L, b)
        self.d1 = nn.Parameter(start.s[:, None].log())
        self.d2 = nn.Parameter(torch.zeros_like(X))
        self.d3 = nn.Parameter(torch.zeros_like(self.d1))
        self.a = nn.Parameter(start.a.clone())
        self.zb = nn.Parameter(start.zb[:, None].clone(), requires_grad=method.learn_shift)
        self.codes: Tensor | None = None
        self.calls = 0

    def forward(self) -> Tensor:
        """(out, in) in the dtype of the products; codes are mapped again every `period` calls."""
        period = self.method.period
        # The published code counts a call before it looks whether it is time: 1, 2, 4, 6, ...
        call = self.calls + self.method.faithful
        if self.codes is None or (period and call % period == 0):
            self.remap()
        self.calls += 1
        a, zb = self.snapped()
        weight: Tensor = MappedWeight.apply(
            self.X,
            self.d1,
            self.d2,
            self.d3,
            a,
            zb,
            (self.z - self.h).detach(),
            self.codes,
            self.signs,
            self.method.gradient_filtering,
            self.products,
        )
        return weight.view(self.out_features, -1)

    def snapped(self) -> tuple[Tensor, Tensor]:
        """a (rows, b) and z_B (rows, 1) of the numbers that are stored, `straight_through`."""
        if self.steps is None:
            return self.a, self.zb
        with torch.no_grad():
            s = self.d1.exp()
            alpha, shift = self.steps.snapped(*self.numbers())
            a = alpha.view_as(self.a) / s
            zb = shift.view_as(s) / s - (self.h - self.z)
        return straight_through(self.a, a), straight_through(self.zb, zb)

    def numbers(self) -> tuple[Tensor, Tensor]:
        """Theorem 1: alpha (out, groups, b) and shift (out, groups), as they are trained."""
        s = self.d1.exp()
        alpha = s * self.a
        shift = s * (self.zb + self.h - self.z)
        return alpha.view(self.out_features, -1, self.bits), shift.view(self.out_features, -1)

    @torch.no_grad()
    def remap(self) -> Tensor:
        """Choose, keep and return the codes of the present parameters, (rows, g) uint8.

        The first time always by the exact mapping, as there are no neighbours yet.
        """
        mapping = self.method.mapping
        a, zb = self.snapped()
        levels = a @ self.signs.T  # (rows, L), in the order of the patterns
        offset = self.z - self.h - zb  # (rows, 1)
        transformed = (self.X, self.d1, self.d2, self.d3, offset)
        if mapping == "exact" or self.codes is None:
            (codes,) = over_rows(_exact, *transformed, *sorted_midpoints(levels))
        elif mapping == "full":
            (codes,) = over_rows(_full, *transformed, levels)
        else:
            present = (levels, self.codes)
            (codes,) = over_rows(_local, *transformed, *present, faithful=self.method.faithful)
        self.codes = codes
        return codes

    @torch.no_grad()
    def merged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Theorem 1: alpha (rows, b) >= 0, shift (rows,), planes bool (b, rows, g).

        In half precision they are not yet rounded to storage, and a negative scale becomes a
        positive one whose plane has the opposite signs. Integers are not negative.
        """
        codes = self.remap() if self.codes is None else self.codes
        alpha, shift = self.numbers()
        if self.steps is not None:
            alpha, shift = self.steps.snapped(alpha, shift)
        alpha = alpha.flatten(0, 1)
        planes = []
        for i in range(self.bits):
            positive = ((codes >> (self.bits - 1 - i)) & 1).bool()  # c_i = +1
            planes.append(positive ^ (alpha[:, i, None] < 0))
        return alpha.abs(), shift.flatten(), torch.stack(planes)

    def export(self) -> Binary:
        """Plain binary coding, with the codes that the present parameters choose."""
        present = self.codes
        if self.method.period:
            self.remap()
        alpha, shift, planes = self.merged()
        if self.method.faithful:  # the published code trains on with those of its last call
            self.codes = present
        alpha = alpha.view(self.out_features, -1, self.bits)  # (out, groups, b)
        shift = shift.view(self.out_features, -1)  # (out, groups)
        planes = planes.view(self.bits, self.out_features, -1)  # (b, out, in)
        return Binary.from_planes(planes, *in_storage(self.steps, alpha, shift))

    def groups(self) -> Groups:
        """One rate for the transformation and one for the levels, as in the authors' code."""
        transformation = [self.d1, self.d2, self.d3]
        levels = [self.a]
        if self.method.learn_shift:
            levels.append(self.zb)
        return [
            {"params": transformation, "lr": self.method.lr},
            {"params": levels, "lr": self.method.lr_alpha},
        ]


def _exact(
    X: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, offset: Tensor, middle: Tensor, order: Tensor
) -> tuple[Tensor]:
    """The mapping `exact`: codes (rows, g) uint8 of y = x - z_B = w / e^(d1 + d2 + d3) + offset."""
    return (ranked(divided(X, d1, d2, d3).add_(offset), middle, order).to(torch.uint8),)


def _full(
    X: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, offset: Tensor, levels: Tensor
) -> tuple[Tensor]:
    """The mapping `full`."""
    y = divided(X, d1, d2, d3).add_(offset)
    distances = (y[..., None] - levels[:, None]).abs()  # (rows, g, L)
    return (distances.argmin(-1).to(torch.uint8),)


def _local(
    X: Tensor,
    d1: Tensor,
    d2: Tensor,
    d3: Tensor,
    offset: Tensor,
    levels: Tensor,
    codes: Tensor,
    faithful: bool,
) -> tuple[Tensor]:
    """The mapping `local`; codes: the present ones."""
    y = divided(X, d1, d2, d3).add_(offset)
    return (nearest_neighbour(y, levels, codes, faithful).to(torch.uint8),)
