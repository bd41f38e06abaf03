"""Rounding vectors of weights to codewords: exact search, BlockLDLQ, and coordinate descent.

BlockLDLQ is from QuIP# (Tseng et al. 2024, arXiv:2402.04396), the sweeps are from UniSVQ
(arXiv:2606.10520). Weights come transposed, (in, out): a vector is d entries of a column, so that
one coordinate of all vectors is contiguous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from qbench.errors import MethodError
from qbench.formats.lattice import Features, features_of

GAUSSIAN_STEP = {
    2: 0.9957,
    3: 0.5860,
}  # of the best uniform grid for N(0, 1), by bits: Max 1960, table II
BUFFER = 128  # columns between two large updates


class Codebook(Protocol):
    """All codewords. map, offset, features: as in `Lattice`. spread: rms of the Gaussian vectors that it suits best."""

    map: Tensor
    offset: Tensor | None
    features: Features
    spread: float

    def nearest(self, T: Tensor) -> tuple[Tensor, Tensor]:
        """(d, rows) float32 -> codes (d, rows) uint8, and values (d, rows) of the nearest codeword of each column."""


class RotatedGrid:
    """A z + b with A = G / sigma, G a rotation: zero mean and unit variance when codes are drawn evenly.

    sigma^2 = (4^B - 1) / 12 is the variance of an even code. As A^T A is a multiple of the
    identity, rounding A^-1 (t - b) finds the nearest codeword; for any other A it would not.
    """

    features: Features = "codes"

    def __init__(self, G: Tensor, bits: int) -> None:
        """G: (d, d) orthogonal, float32."""
        sigma = math.sqrt((4**bits - 1) / 12)
        self.top = 2**bits - 1
        self.map = G / sigma
        self.offset = -self.top / 2 * self.map.sum(1)
        self.spread = 1 / (sigma * GAUSSIAN_STEP[bits])
        self._inverse = G.T * sigma

    def nearest(self, T: Tensor) -> tuple[Tensor, Tensor]:
        """(d, rows) -> codes (d, rows) uint8, values (d, rows)."""
        z = (self._inverse @ T).add_(self.top / 2).round_().clamp_(0, self.top)
        return z.to(torch.uint8), torch.addmm(self.offset[:, None], self.map, z)


class SignMap:
    """M s with s in {-1, +1}^(dB), the signs of the bits of d codes, and any M; all codewords are searched."""

    features: Features = "signs"
    offset: Tensor | None = None
    spread = 1.0

    def __init__(self, M: Tensor, bits: int) -> None:
        """M: (d, d * bits) float32."""
        self.map = M
        codes = torch.cartesian_prod(*[torch.arange(2**bits, dtype=torch.uint8)] * len(M)).view(
            -1, len(M)
        )
        self.signs = features_of(codes, len(M), bits, "signs")[:, 0].to(
            M.device
        )  # (codewords, d * bits)
        self.codes = codes.T.contiguous().to(M.device)
        self.values = (
            M @ self.signs.T
        )  # (d, codewords); the k-th and the k-th from the end are opposite
        self._half = self.values[:, : len(codes) // 2].contiguous()
        self._energy = self._half.square().sum(0) / 2

    def nearest(self, T: Tensor) -> tuple[Tensor, Tensor]:
        """(d, rows) -> codes (d, rows) uint8, values (d, rows)."""
        index = self.index(T)
        return self.codes[:, index], self.values[:, index]

    def index(self, T: Tensor) -> Tensor:
        """(d, rows) -> number (rows,) of the codeword with the largest t.c - |c|^2 / 2, opposite ones tried at once."""
        scores = (
            1 << 20 if T.device.type == "cpu" else 1 << 26
        )  # at a time: on a CPU they stay in its cache
        found = []
        for part in T.split(max(1, scores // self._half.shape[1]), 1):
            best = largest((part.T @ self._half).abs_().sub_(self._energy))
            opposite = (self.values[:, best] * part).sum(0) < 0
            found.append(torch.where(opposite, self.values.shape[1] - 1 - best, best))
        return torch.cat(found)


def largest(scores: Tensor) -> Tensor:
    """Index (rows,) of the largest of each row. On the CPU numpy's search is vectorized, and torch's is not."""
    return (
        torch.from_numpy(scores.numpy().argmax(1))
        if scores.device.type == "cpu"
        else scores.argmax(1)
    )


def rotation(d: int, generator: torch.Generator) -> Tensor:
    """(d, d) orthogonal, float32, evenly distributed: the Q of a Gaussian matrix whose R has a positive diagonal."""
    Q, R = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))
    return (Q * R.diagonal().sign()).float()


@cache
def gaussian_map(d: int, bits: int, seed: int) -> Tensor:
    """M (d, d * bits) float32 with a small E |x - M s|^2 for x ~ N(0, I) and s nearest: the best of several fits.

    It is kept for the next call, and must not be changed in place.
    """
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(d, 1 << 14, generator=generator)
    few = d * bits <= 9  # with more codewords a fit takes longer, and fits differ less
    fits = [_fit(d, bits, 250 if few else 150, generator) for _ in range(8 if few else 2)]
    return min(fits, key=lambda M: (X - SignMap(M, bits).nearest(X)[1]).square().mean().item())


def _fit(d: int, bits: int, rounds: int, generator: torch.Generator, samples: int = 1024) -> Tensor:
    """Alternate between nearest codewords and least squares, M = E[x s^T] E[s s^T]^-1, from a disturbed rotated grid.

    Each round sees fresh samples, and the expectations are running means. Noise on M, which falls
    to zero within the first 70 % of the rounds, leads out of poor optima (stochastic relaxation,
    Zeger, Vaisey and Gersho 1992).
    """
    step, G = GAUSSIAN_STEP[bits], rotation(d, generator)
    M = torch.cat([step * 2.0 ** (bits - 2 - p) * G for p in range(bits)], 1)
    M += 0.6 * step * torch.randn(M.shape, generator=generator)
    k = M.shape[1]
    moments = torch.zeros(k, k + d)
    for i in range(rounds):
        cooling = max(0.0, 1 - i / (0.7 * rounds))
        book = SignMap(M + 0.1 * step * cooling * torch.randn(M.shape, generator=generator), bits)
        X = torch.randn(d, samples, generator=generator)
        S = book.signs[book.index(X)]  # (samples, k)
        moments.lerp_(S.T @ torch.cat([S, X.T], 1) / samples, 0.5 if cooling else 0.1)
        M = torch.linalg.solve(moments[:, :k] + 1e-6 * torch.eye(k), moments[:, k:]).T
    return M.contiguous()


@dataclass(frozen=True)
class Curvature:
    """A Hessian (in, in) for vectors of d weights, float32.

    H: regularized. L: unit block lower triangular, H = L D L^T with blocks of d. inverse: (in/d, d,
    d), of the diagonal blocks of H.
    """

    H: Tensor
    L: Tensor
    inverse: Tensor

    @property
    def d(self) -> int:
        """Weights in a vector."""
        return self.inverse.shape[1]

    @classmethod
    def factor(cls, H: Tensor, d: int, regularization: float) -> Curvature:
        """With the Cholesky factor H = C C^T, L = C blockdiag(C_kk)^-1.

        Where there is none, 10, 100 and 1000 times the regularization is added, in float32 and then
        in float64; MethodError where that does not help.
        """
        n = len(H)
        for dtype in (torch.float32, torch.float64):
            for times in (0, 10, 100, 1000):
                G = H.to(dtype) + torch.eye(n, dtype=dtype, device=H.device) * (
                    times * regularization
                )
                C, failed = torch.linalg.cholesky_ex(G)
                if failed or not torch.isfinite(C).all():
                    continue
                columns = C.reshape(n, n // d, d).transpose(0, 1)  # (in/d, in, d)
                L = (columns @ torch.linalg.inv(diagonal(C, d))).transpose(0, 1).reshape(n, n)
                return cls(G.float(), L.float(), torch.linalg.inv(diagonal(G, d)).float())
        raise MethodError(
            f"the Hessian of this layer is not positive definite with {1000 * regularization:g} of its mean diagonal "
            "added; give more calibration tokens or a larger regularization"
        )


def diagonal(G: Tensor, d: int) -> Tensor:
    """Blocks (n/d, d, d) on the diagonal of (n, n)."""
    return G.reshape(len(G) // d, d, -1, d).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def assign(
    W: Tensor, curvature: Curvature, codebook: Codebook, sweeps: int
) -> tuple[Tensor, Tensor]:
    """Codes (in, out) uint8 of W (in, out), and the error E = W - W^: BlockLDLQ, then at most so many sweeps."""
    codes, E = block_ldlq(W, curvature, codebook)
    for _ in range(sweeps):
        if not sweep(W, E, codes, curvature, codebook):
            break
    return codes, E


def block_ldlq(W: Tensor, curvature: Curvature, codebook: Codebook) -> tuple[Tensor, Tensor]:
    """Codes (in, out) uint8 of W (in, out), and the error E = W - W^ (in, out).

    From the last vector to the first, t_k = W_k + sum over j > k of L_jk^T E_j goes to the nearest
    codeword. That leaves tr(E^T H E) = sum_k |C_kk^T (t_k - W^_k)|^2.
    """
    L, d, n = curvature.L, curvature.d, len(W)
    E, codes = torch.zeros_like(W), torch.empty_like(W, dtype=torch.uint8)
    width = max(d, BUFFER // d * d)
    for stop in range(n, 0, -width):
        start = max(0, stop - width)
        T = torch.addmm(W[start:stop], L[stop:, start:stop].T, E[stop:])
        for k in range(stop - d, start - 1, -d):
            here, later = slice(k, k + d), slice(k + d, stop)
            t = torch.addmm(T[k - start : k - start + d], L[later, here].T, E[later])
            codes[here], values = codebook.nearest(t)
            torch.sub(W[here], values, out=E[here])
    return codes, E


def sweep(W: Tensor, E: Tensor, codes: Tensor, curvature: Curvature, codebook: Codebook) -> int:
    """Coordinate descent on e^T H e of every column e of E, vector by vector; E and codes in place. Number of steps.

    t_k = W^_k + H_kk^-1 (H E)_k would be the best values if there were no grid. A column goes to
    its nearest codeword where the change x of W^_k lowers the error: x^T H_kk x - 2 x^T (H E)_k <
    0.
    """
    H, d, n = curvature.H, curvature.d, len(W)
    width = max(d, BUFFER // d * d)
    taken = torch.zeros((), dtype=torch.long, device=W.device)
    for start in range(0, n, width):
        stop = min(n, start + width)
        G = H[start:stop] @ E  # kept up to date within the buffer
        for k in range(start, stop, d):
            here, g = slice(k, k + d), G[k - start : k - start + d]
            values = W[here] - E[here]
            z, nearest = codebook.nearest(torch.addmm(values, curvature.inverse[k // d], g))
            x = nearest - values
            better = (x * torch.addmm(g, H[here, here], x, beta=-2)).sum(0) < 0
            x *= better
            codes[here] = torch.where(better, z, codes[here])
            E[here] -= x
            G[k - start + d :].addmm_(H[k + d : stop, here], x, alpha=-1)
            taken += better.sum()
    return int(taken)
