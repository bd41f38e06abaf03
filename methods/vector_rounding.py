"""Rounding vectors of weights to codewords under a Hessian: BlockLDLQ, and coordinate descent.

BlockLDLQ is from QuIP# (Tseng et al. 2024, arXiv:2402.04396), the sweeps are from UniSVQ
(arXiv:2606.10520). Weights come transposed, (in, out): a vector is d entries of a column, so that
one coordinate of all vectors is contiguous. With E = W - W^ both lower tr(E^T H E).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.calibration.recorded import in_place
from qbench.errors import MethodError
from qbench.methods.codebooks import Codebook

BUFFER = 128  # columns between two large updates


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
        """With the Cholesky factor H = C C^T, L = C blockdiag(C_kk)^-1, D = blockdiag(C_kk C_kk^T).

        Where there is none, 10, 100 and 1000 times the regularization is added, in float32 and then
        in float64; MethodError where that does not help.
        """
        for dtype in (torch.float32, torch.float64):
            identity = torch.eye(len(H), dtype=dtype, device=H.device)
            for times in (0, 10, 100, 1000):
                G = H.to(dtype) + identity * (times * regularization)
                C, failed = torch.linalg.cholesky_ex(G)
                if failed or not torch.isfinite(C).all():
                    continue
                L = unit_blocks(C, d)
                inverse = torch.linalg.inv(diagonal(G, d))
                return cls(G.float(), L.float(), inverse.float())
        raise MethodError(
            f"the Hessian of this layer is not positive definite with {1000 * regularization:g} "
            "of its mean diagonal added; give more calibration tokens or a larger regularization"
        )


def unit_blocks(C: Tensor, d: int) -> Tensor:
    """C blockdiag(C_kk)^-1, (n, n): the blocks of d columns of C, each by its diagonal block."""
    n = len(C)
    columns = C.reshape(n, n // d, d).transpose(0, 1)  # (n/d, n, d)
    scaled = columns @ torch.linalg.inv(diagonal(C, d))  # (n/d, n, d)
    return scaled.transpose(0, 1).reshape(n, n)


def diagonal(G: Tensor, d: int) -> Tensor:
    """The blocks (n/d, d, d) on the diagonal of G (n, n)."""
    blocks = G.reshape(len(G) // d, d, -1, d)  # (n/d, d, n/d, d)
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def assign(
    W: Tensor, curvature: Curvature, codebook: Codebook, sweeps: int
) -> tuple[Tensor, Tensor]:
    """Codes (in, out) uint8 of W (in, out), and the error E = W - W^ (in, out).

    BlockLDLQ, then at most so many sweeps; they end where one changes nothing.
    """
    codes, E = block_ldlq(W, curvature, codebook)
    for _ in range(sweeps):
        if not sweep(W, E, codes, curvature, codebook):
            break
    return codes, E


def block_ldlq(W: Tensor, curvature: Curvature, codebook: Codebook) -> tuple[Tensor, Tensor]:
    """Codes (in, out) uint8 of W (in, out), and the error E = W - W^ (in, out).

    From the last vector to the first, t_k = W_k + sum over j > k of L_jk^T E_j goes to the nearest
    codeword. That leaves tr(E^T H E) = sum_k |C_kk^T (t_k - W^_k)|^2: with H = L D L^T it is
    sum_k |C_kk^T (L^T E)_k|^2, and as the diagonal blocks of L are I, (L^T E)_k = E_k + sum over
    j > k of L_jk^T E_j = t_k - W^_k. So the errors of all later vectors must be known.
    """
    L = curvature.L
    d = curvature.d
    n = len(W)
    E = torch.zeros_like(W)
    codes = torch.empty_like(W, dtype=torch.uint8)
    width = max(d, BUFFER // d * d)
    for stop in range(n, 0, -width):
        start = max(0, stop - width)
        # The errors behind the buffer, in one product for all vectors of the buffer.
        T = torch.addmm(W[start:stop], L[stop:, start:stop].T, E[stop:])
        buffer = slice(start, stop)
        read = (W[buffer], L[buffer, buffer], T)
        in_place(_ldlq_buffer, read, (codes[buffer], E[buffer]), codebook, d)
    return codes, E


def _ldlq_buffer(
    W: Tensor, L: Tensor, T: Tensor, codes: Tensor, E: Tensor, codebook: Codebook, d: int
) -> None:
    """BlockLDLQ within a buffer: all (columns, out), but L (columns, columns)."""
    for k in range(len(W) - d, -1, -d):
        here = slice(k, k + d)
        later = slice(k + d, None)
        # (d, out): W_k with the errors of all later vectors.
        t = torch.addmm(T[here], L[later, here].T, E[later])
        codes[here], values = codebook.nearest(t)
        torch.sub(W[here], values, out=E[here])


def sweep(W: Tensor, E: Tensor, codes: Tensor, curvature: Curvature, codebook: Codebook) -> int:
    """Coordinate descent on e^T H e of every column e of E, vector by vector; the number of steps.

    W, E (in, out); codes (in, out) uint8; E and codes are changed in place. t_k = W^_k + H_kk^-1 (H
    E)_k would be the best values if there were no grid: a change x of W^_k changes E_k by -x, and
    the error by x^T H_kk x - 2 x^T (H E)_k, which is least at x = H_kk^-1 (H E)_k. A column goes to
    the codeword nearest to its t_k where that lowers the error.
    """
    H = curvature.H
    d = curvature.d
    n = len(W)
    width = max(d, BUFFER // d * d)
    steps = torch.zeros((), dtype=torch.long, device=W.device)
    for start in range(0, n, width):
        buffer = slice(start, min(n, start + width))
        G = H[buffer] @ E
        inverse = curvature.inverse[start // d : buffer.stop // d]
        read = (W[buffer], H[buffer, buffer], inverse)
        in_place(_sweep_buffer, read, (codes[buffer], E[buffer], G, steps), codebook)
    return int(steps)


def _sweep_buffer(
    W: Tensor,
    H: Tensor,
    inverse: Tensor,
    codes: Tensor,
    E: Tensor,
    G: Tensor,
    steps: Tensor,
    codebook: Codebook,
) -> None:
    """A sweep within a buffer: W, codes, E and G = H E (columns, out), H (columns, columns).

    inverse: (columns/d, d, d), of the diagonal blocks of H. steps: their number is added to it.
    """
    d = inverse.shape[1]
    for k in range(0, len(W), d):
        here = slice(k, k + d)
        g = G[here]  # (H E)_k
        values = W[here] - E[here]  # W^_k
        t = torch.addmm(values, inverse[k // d], g)
        z, nearest = codebook.nearest(t)
        x = nearest - values
        gradient = torch.addmm(g, H[here, here], x, beta=-2)  # H_kk x - 2 (H E)_k
        better = (x * gradient).sum(0) < 0  # (out,)
        x *= better  # other columns stay
        codes[here] = torch.where(better, z, codes[here])
        E[here] -= x
        # (H E)_j of the later vectors of the buffer, as E_k has changed by -x.
        G[k + d :].addmm_(H[k + d :, here], x, alpha=-1)
        steps += better.sum()
