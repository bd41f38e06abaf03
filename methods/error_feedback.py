"""Error feedback: round column by column, and let the columns still to come make up for the errors.

Algorithm 1 of GPTQ (Frantar et al. 2022, arXiv:2210.17323). With H = 2/n sum x x^T and U the upper
Cholesky factor of H^-1 (H^-1 = U^T U), rounding column i to q leaves e = (w_i - q) / U_ii, and
w_j -= e U_ij for j > i.

That is the step of the optimal brain surgeon. Let F = i..n be the columns that are still free. The
least increase of the error moves w_F by -(w_i - q) (H_F^-1)_iF / (H_F^-1)_ii. Since H = U^-1 U^-T
and U^-1 is upper, H_F^-1 = U_F^T U_F; its first row is U_ii U_iF, and the step is -e U_iF. So one
factorization serves all i.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qbench.calibration.recorded import in_place
from qbench.contracts import LinearStats
from qbench.errors import MethodError, require_at_least
from qbench.methods.native import loops

LEAST_DAMP = 1e-6  # what retries multiply where less was asked for
LEAST_LEFT = 1e-5  # of a column, that is factorized in float32
HALVED = 256  # columns down to which triangles are halved before they are inverted


def check_damp(damp: float) -> None:
    """ConfigError unless damp, a part of the mean diagonal, is 0 or more."""
    require_at_least("damp", damp, 0, "; it is a share of the diagonal")


def live_hessian(stats: LinearStats) -> Tensor:
    """The Hessian (in, in) float32 with a curvature for dead inputs, which are always zero.

    It is the mean of the live ones, so that damping and `importance` are in the units of the
    inputs. Weights of dead inputs are then rounded to nearest. The authors' code sets these weights
    to zero, which loses them for inputs that the calibration text did not show. A layer that saw no
    token at all (an expert) has the identity.
    """
    H = stats.hessian.float().clone()
    diagonal = H.diagonal()  # a view
    dead = diagonal == 0
    diagonal[dead] = 1 if dead.all() else diagonal[~dead].mean()
    return H


def importance(H: Tensor, damp: float) -> Tensor:
    """(in,) float32: diag(H) + damp times its mean, what an error of each input counts for itself.

    H (in, in): as `live_hessian` gives it.
    """
    diagonal = H.diagonal()
    return diagonal + damp * diagonal.mean()


def inverse_cholesky(H: Tensor, damp: float) -> Tensor:
    """Upper U (n, n) float32 with H^-1 = U^T U, after damping of H (n, n).

    damp: a fraction of the mean diagonal. Tried as it is, and then at 10, 100 and 1000 times that,
    or that of `LEAST_DAMP` where it is less, each in float32 and then in float64. MethodError where
    none is positive definite.

    With J that turns the order round, J H J = L L^T gives H = R R^T for the upper R = J L J, so
    that U = R^-1. That is half of the work of a Cholesky factor of H^-1.
    """
    mean = H.diagonal().mean().item()
    raised = [max(damp, LEAST_DAMP) * factor for factor in (10, 100, 1000)]
    for share in (damp, *raised):
        for dtype in (torch.float32, torch.float64):
            identity = torch.eye(len(H), dtype=dtype, device=H.device)
            damped = (H.to(dtype) + identity * (share * mean)).flip(0, 1)
            lower, failed = torch.linalg.cholesky_ex(damped)
            # What the other columns leave of one: float32 knows a smaller share by few digits.
            left = (lower.diagonal().square() / damped.diagonal()).min()
            if failed or (dtype == torch.float32 and not left > LEAST_LEFT):
                continue
            upper = inverse_upper(lower.flip(0, 1))
            if torch.isfinite(upper).all():
                return upper.float()
    raise MethodError(
        f"the Hessian of this layer is not positive definite with damping up to {raised[-1]:g} "
        "of its diagonal; give more calibration tokens or a larger damp"
    )


def inverse_upper(R: Tensor) -> Tensor:
    """The inverse of R (n, n) upper, floating: most of the work is two products of halves.

    [[A, B], [0, C]]^-1 = [[A^-1, -A^-1 B C^-1], [0, C^-1]].
    """
    n = len(R)
    if n <= HALVED:
        identity = torch.eye(n, dtype=R.dtype, device=R.device)
        return torch.linalg.solve_triangular(R, identity, upper=True)
    half = n // 2
    inverse = torch.zeros_like(R)
    first = inverse_upper(R[:half, :half])
    second = inverse_upper(R[half:, half:])
    inverse[:half, :half] = first
    inverse[half:, half:] = second
    inverse[:half, half:] = -(first @ R[:half, half:] @ second)
    return inverse


class Rounded(NamedTuple):
    """What error feedback makes of the columns of a weight, in the order of processing.

    codes (out, in) uint8. values (out, in) float32: what each column was when it was rounded, with
    the errors of those before it taken in; the codes are the nearest ones to these. loss (out,)
    float32: dw H dw^T of each row, H damped as it was for U.
    """

    codes: Tensor
    values: Tensor
    loss: Tensor


def round_columns(W: Tensor, U: Tensor, s: Tensor, z: Tensor, top: int, block_size: int) -> Rounded:
    """Round W to the grid s (q - z), q in 0..top, with error feedback through U.

    W, s, z (out, in) float32, columns in the order of processing; U (in, in) upper.
    """
    # (in, out): a column of the weight is contiguous.
    values = W.T.clone(memory_format=torch.contiguous_format)
    codes, errors = round_span(values, U, s.T, z.T, top, block_size)
    # H = U^-T U^-1, and U^-1 turns the change of a row into its errors: dw H dw^T is their square.
    loss = errors.square().sum(0)
    return Rounded(codes.T.contiguous(), values.T.contiguous(), loss)


def round_span(
    WT: Tensor, U: Tensor, sT: Tensor, zT: Tensor, top: int, block_size: int
) -> tuple[Tensor, Tensor]:
    """Codes (uint8) and errors of consecutive columns WT, (columns, out) each.

    U (columns, columns), sT and zT (columns, out), float32. WT becomes what its columns were when
    they were rounded.
    """
    sT = sT.contiguous()
    zT = zT.contiguous()
    # In a group whose scale is zero every weight gets the code of the zero point.
    inverse = torch.where(sT > 0, 1 / sT, 0)
    codes = torch.empty(WT.shape, dtype=torch.uint8, device=WT.device)
    errors = torch.empty_like(WT)
    n = len(WT)
    # WT[start:] has taken in the errors of all earlier blocks.
    for start in range(0, n, block_size):
        stop = min(start + block_size, n)
        here = slice(start, stop)
        rounded = torch.empty_like(WT[here])
        read = (U[here, here], sT[here], inverse[here], zT[here])
        changed = (WT[here], rounded, errors[here])
        native = WT.is_contiguous() and len(rounded) <= loops.COLUMNS
        if native and loops.here(*read, *changed):
            loops.round_block(*read, *changed, top)
        else:
            in_place(round_block, read, changed, top)
        codes[here] = rounded
        # The lazy update of algorithm 1: the columns behind the block, in one product,
        # w_j -= sum over i of the block of e_i U_ij.
        WT[stop:].addmm_(U[here, stop:].T, errors[here], alpha=-1)
    return codes, errors


def round_block(
    U: Tensor,
    s: Tensor,
    inverse: Tensor,
    z: Tensor,
    W: Tensor,
    codes: Tensor,
    errors: Tensor,
    top: int,
) -> None:
    """Round the columns of a block, each (out,), and enter their codes and errors.

    U (columns, columns), all others (columns, out) float32; inverse is 1/s. In place, since a
    column costs a GPU as much as it has operations.
    """
    diagonal = U.diagonal()
    for i in range(len(W)):  # W[i:] has taken in the errors of all earlier columns
        q = codes[i]
        torch.addcmul(z[i], W[i], inverse[i], out=q).round_().clamp_(0, top)  # w / s + z
        e = errors[i]
        torch.sub(q, z[i], out=e).mul_(s[i])  # s (q - z)
        torch.sub(W[i], e, out=e).div_(diagonal[i])
        W[i + 1 :].addr_(U[i, i + 1 :], e, alpha=-1)  # w_j -= e U_ij
