"""Codebooks of vectors: d weights at a time, an affine image of d integer codes or of their bits.

Vectors come as columns, (d, rows), so that one coordinate of all vectors is contiguous. The search
for the nearest codeword is exact.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from qbench.formats.lattice import Features, features_of

# Step of the best uniform grid for N(0, 1), by bits: Max 1960, table II.
GAUSSIAN_STEP = {2: 0.9957, 3: 0.5860}


class Codebook(Protocol):
    """All codewords.

    map, offset, features: as in `Lattice`, float32. spread: rms of the Gaussian vectors that the
    codebook suits best.
    """

    map: Tensor
    offset: Tensor | None
    features: Features
    spread: float

    def nearest(self, T: Tensor) -> tuple[Tensor, Tensor]:
        """The codeword nearest to each column of T (d, rows) float32.

        Returns its codes (d, rows) uint8, and its values (d, rows) float32.
        """


class RotatedGrid:
    """A z + b with A = G / sigma, G a rotation: zero mean and unit variance over even codes.

    sigma^2 = (4^B - 1) / 12 is the variance of a code drawn evenly from 0 .. 2^B - 1. As A^T A is a
    multiple of the identity, rounding A^-1 (t - b) finds the nearest codeword; for any other A it
    would not.
    """

    features: Features = "codes"

    def __init__(self, G: Tensor, bits: int) -> None:
        """G: (d, d) orthogonal, float32."""
        sigma = math.sqrt((4**bits - 1) / 12)
        self.top = 2**bits - 1
        self.map = G / sigma
        self.offset = -self.top / 2 * self.map.sum(1)  # b = -A (top/2, .., top/2)
        # In the axes of G the codewords are a grid of step 1/sigma. For Gaussian vectors of rms r
        # the best step is r GAUSSIAN_STEP, which fits where r is the spread.
        self.spread = 1 / (sigma * GAUSSIAN_STEP[bits])
        self._inverse = G.T * sigma  # A^-1, as G is orthogonal

    def nearest(self, T: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Codebook`."""
        # A^-1 (t - b) = A^-1 t + top/2
        z = (self._inverse @ T).add_(self.top / 2).round_().clamp_(0, self.top)
        values = torch.addmm(self.offset[:, None], self.map, z)
        return z.to(torch.uint8), values


class SignMap:
    """M s with s in {-1, +1}^(dB), the signs of the bits of d codes, and any M.

    All 2^(dB) codewords are searched, in half the products: s and -s are both among them, so the
    k-th codeword is the opposite of the k-th from the end.
    """

    features: Features = "signs"
    offset: Tensor | None = None
    spread = 1.0

    def __init__(self, M: Tensor, bits: int) -> None:
        """M: (d, d * bits) float32."""
        d = len(M)
        one_code = torch.arange(2**bits, dtype=torch.uint8)
        codes = torch.cartesian_prod(*[one_code] * d).view(-1, d)  # (codewords, d)
        signs = features_of(codes, d, bits, "signs")[:, 0]
        self.map = M
        self.signs = signs.to(M.device)  # (codewords, d * bits)
        self.codes = codes.T.contiguous().to(M.device)  # (d, codewords)
        self.values = M @ self.signs.T  # (d, codewords)
        # Codeword k has the opposite bits of the k-th from the end: one half has all |t.c|.
        self._half = self.values[:, : len(codes) // 2].contiguous()
        self._energy = self._half.square().sum(0) / 2  # |c|^2 / 2

    def nearest(self, T: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Codebook`."""
        index = self.index(T)
        return self.codes[:, index], self.values[:, index]

    def index(self, T: Tensor) -> Tensor:
        """The number, (rows,) int64, of the codeword nearest to each column t of T (d, rows).

        |t - c|^2 is least where t.c - |c|^2 / 2 is largest; of c and -c that is |t.c| - |c|^2 / 2,
        and the sign of t.c tells which.
        """
        # Scores at a time: on a CPU they stay in its cache.
        scores = 1 << 20 if T.device.type == "cpu" else 1 << 26
        last = self.values.shape[1] - 1
        nearest = []
        for part in T.split(max(1, scores // self._half.shape[1]), 1):
            best = largest((part.T @ self._half).abs_().sub_(self._energy))
            # t.c < 0: -c is nearer, which is as far from the end.
            opposite = (self.values[:, best] * part).sum(0) < 0
            nearest.append(torch.where(opposite, last - best, best))
        return torch.cat(nearest)


def largest(scores: Tensor) -> Tensor:
    """Index (rows,) of the largest entry of each row of (rows, n)."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmax(1))  # vectorized, which torch's is not
    return scores.argmax(1)


def rotation(d: int, generator: torch.Generator) -> Tensor:
    """(d, d) orthogonal, float32, evenly distributed.

    It is the Q of a Gaussian matrix whose R has a positive diagonal.
    """
    # QR leaves the signs of the columns open; R with a positive diagonal makes it unique.
    Q, R = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))
    return (Q * R.diagonal().sign()).float()


@cache
def gaussian_map(d: int, bits: int, seed: int) -> Tensor:
    """M (d, d * bits) float32 with a small E |x - M s|^2 for x ~ N(0, I) and s nearest.

    The best of several fits. It is kept for the next call, and must not be changed in place.
    """
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(d, 1 << 14, generator=generator)
    if d * bits <= 9:
        fits, rounds = 8, 250
    else:  # with more codewords a fit takes longer, and fits differ less
        fits, rounds = 2, 150
    maps = [_fit(d, bits, rounds, generator) for _ in range(fits)]

    def error(M: Tensor) -> float:
        _, values = SignMap(M, bits).nearest(X)
        return (X - values).square().mean().item()

    return min(maps, key=error)


def _fit(d: int, bits: int, rounds: int, generator: torch.Generator, samples: int = 1024) -> Tensor:
    """Alternate between nearest codewords and least squares, M = E[x s^T] E[s s^T]^-1.

    From a disturbed rotated grid. Each round sees fresh samples, and the expectations are running
    means. Noise on M, which falls to zero within the first 70 % of the rounds, leads out of poor
    optima (stochastic relaxation, Zeger, Vaisey and Gersho 1992).
    """
    step = GAUSSIAN_STEP[bits]
    G = rotation(d, generator)
    # The tied form of a grid: z - top/2 = sum_p 2^(B-2-p) s_p with bits z_p = (s_p + 1)/2.
    M = torch.cat([step * 2.0 ** (bits - 2 - p) * G for p in range(bits)], 1)
    M += 0.6 * step * torch.randn(M.shape, generator=generator)
    k = M.shape[1]
    moments = torch.zeros(k, k + d)  # E[s s^T] and E[s x^T], side by side
    ridge = 1e-6 * torch.eye(k)
    for i in range(rounds):
        cooling = max(0.0, 1 - i / (0.7 * rounds))
        noise = torch.randn(M.shape, generator=generator)
        book = SignMap(M + 0.1 * step * cooling * noise, bits)
        X = torch.randn(d, samples, generator=generator)
        S = book.signs[book.index(X)]  # (samples, k)
        present = S.T @ torch.cat([S, X.T], 1) / samples
        # A longer memory once the noise is gone.
        moments.lerp_(present, 0.5 if cooling else 0.1)
        # Least squares: E[s s^T] M^T = E[s x^T].
        M = torch.linalg.solve(moments[:, :k] + ridge, moments[:, k:]).T
    return M.contiguous()
