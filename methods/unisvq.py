"""UniSVQ: vectors of weights as an affine image of codes, between two Hadamard transforms.

UniSVQ, ICML 2026, arXiv:2606.10520, and its code (AI9Stars/UniSVQ). As in the paper, d consecutive
weights of a row of W~ / s_W are A z + b, z in {0..2^B-1}^d, with one A and b for the whole matrix
and

    W~ = T_m diag(1 / SV) W diag(1 / SU) T_n,
    H~ = T_n (G / mean(diag G) + regularization I) T_n,    G = diag(SU) H diag(SU),

orthonormal Hadamard matrices T, and SU and SV of random signs. Codes come from BlockLDLQ and sweeps
of coordinate descent on tr(E H~ E^T), E = W~ - W~^; then A, b, SU and SV are trained on the block's
output while the codes stay.

Where this differs from the authors' code: SV is also the root mean square of each row (theirs: one
of the whole matrix), so that small rows, and zeros, keep their relative precision as far as half
precision holds their norm; SU is also that of each column, in rows that were divided by theirs
(theirs: signs alone, as with `scaled_inputs=False`); s_W is searched (theirs: rms / 0.83); a row
takes a step of a sweep only where that lowers its error; SU and SV are trained relative to their
start.

Why the columns: if rounding left errors without a direction, of a size in proportion to the norm of
W~, tr(E~ H~ E~^T) would be after BlockLDLQ about |W diag(1 / SU)|^2 det(G)^(1/in), and det G is det
H times the product of SU^2. So of all SU with one product that is best with which all columns of
W diag(1 / SU) have one norm, whatever H is. As SU is stored as numbers in any case, it costs no
bits. On the layers of two blocks of SmolLM2-135M at 2 bits tr(E H E^T) is 2 to 13 % smaller.

For Gaussian weights A z + b has no advantage over a scalar grid: with a rotation A the two are the
same. The method `unisvq-untied` frees the map of the bits: M s with s in {-1, +1}^(dB). The tied
form is M = [2^(B-2) A, .., A, A / 2].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from qbench.calibration.reconstruction import Reconstruction, TrainedWeight, Weights
from qbench.calibration.training import Groups, reconstruct
from qbench.contracts import BlockInputs, BlockResult, LinearStats, Scheme
from qbench.errors import ConfigError
from qbench.formats import Lattice
from qbench.formats.lattice import decode, features_of
from qbench.formats.packing import as_stored
from qbench.methods.codebooks import Codebook, RotatedGrid, SignMap, gaussian_map, rotation
from qbench.methods.rotation import random_signs, two_sided
from qbench.methods.vector_rounding import Curvature, assign

LEAST = 2.0**-10  # size of an input's weights, relative to the others', which half precision holds
CODEWORDS = 4096  # at most so many are searched
# Widths tried for rms(W~) / s_W, relative to what is best for Gaussian vectors rounded to nearest.
WIDTHS = (1.0, 0.93, 0.86, 0.79)
TRIAL = 128  # at least so many rows choose among them, and less than twice as many


@dataclass(frozen=True)
class UniSVQ(Reconstruction):
    """Lattice codes with one affine map per matrix, trained on the output of a block.

    There are no groups: `group_size` is only checked.

    dimension: the largest d; a layer has the largest divisor of its inputs up to that.
    sweeps: of coordinate descent.
    regularization: added to the diagonal of the Hessian, as a part of its mean; 10, 100 or 1000
        times as much where there is no Cholesky factor.
    scale: rms(W~) / s_W; None searches it, layer by layer.
    scaled_inputs: whether SU has the sizes of columns, and not signs alone.
    lr_map: learning rate of A and b.
    lr_signs: learning rate of SU and SV, relative to their size.
    seed: as in `Reconstruction`, and of the signs and the rotation.
    """

    name: ClassVar[str] = "unisvq"
    paper: ClassVar[str] = "UniSVQ, ICML 2026, arXiv:2606.10520"
    format: ClassVar[str] = "lattice"
    bits: ClassVar[tuple[int, int]] = (2, 3)
    symmetric: ClassVar[bool] = False
    exceptions: ClassVar[Mapping[str, str]] = {
        "check_zeros_and_constants": (
            "random signs and the Hadamard transform turn a constant into noise"
        )
    }

    dimension: int = 4
    sweeps: int = 5
    regularization: float = 1e-2
    scale: float | None = None
    scaled_inputs: bool = True
    lr_map: float = 5e-5
    lr_signs: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = self.dimension >= 1 and (self.scale is None or self.scale > 0)
        if not positive or self.sweeps < 0 or self.regularization < 0:
            raise ConfigError(
                f"dimension={self.dimension}, sweeps={self.sweeps}, "
                f"regularization={self.regularization}, scale={self.scale}: dimension must be 1 or "
                "more, sweeps and regularization 0 or more, scale positive"
            )

    def quantize_block(
        self, block: nn.Module, inputs: BlockInputs, targets: list[Tensor], scheme: Scheme
    ) -> BlockResult:
        """Codes of all linear layers from the Hessians of their inputs, then training together.

        targets: what the block gives in full precision, (batch, length, width) per batch.
        """
        weights = self._prepared(block, inputs, scheme)
        return reconstruct(block, Weights(block, weights), inputs, targets, self)

    def prepare(self, weight: Tensor, scheme: Scheme, stats: LinearStats) -> LatticeWeight:
        """The codes under the curvature of the layer's inputs."""
        return self.start(weight, scheme, self.curvature(weight, scheme, stats))

    @torch.no_grad()
    def start(
        self, weight: Tensor, scheme: Scheme, curvature: Curvature | None = None
    ) -> LatticeWeight:
        """weight (out, in), floating: -> its codes, and what is trained.

        Without a curvature: for white inputs.
        """
        scheme.group_length(weight.shape[1])  # refuses a group size that does not fit
        if curvature is None:
            curvature = self.curvature(weight, scheme)
        codebook = self.codebook(curvature.d, scheme.bits, weight.device)
        su = self.input_scales(weight)
        sv = random_signs(len(weight), self.seed + 1, weight)  # (out,)
        W = weight.float() / su
        rms = W.square().mean(1).sqrt()  # (out,)
        rows = torch.where(rms > 0, sv / rms, 0)  # a row of zeros stays one
        W = two_sided(W * rows[:, None]).T.contiguous()  # W~ (in, out)
        s_W = self.step(W, curvature, codebook)
        # T and the signs are their own inverses: W = diag(SV rms s_W) T_m (W~ / s_W) T_n diag(SU).
        codes, _ = assign(W / s_W, curvature, codebook, self.sweeps)
        return LatticeWeight(codes.T.contiguous(), codebook, su, sv * rms * s_W, scheme.bits, self)

    def step(self, W: Tensor, curvature: Curvature, codebook: Codebook) -> float:
        """s_W for W~ (in, out).

        The search looks at a part of the rows only: the transform has made them alike.
        """
        rms = W.square().mean().sqrt().item()
        if not rms:
            return 1.0
        if self.scale is not None:
            return rms / self.scale or 1.0
        # (in, rows of the weight): W is transposed.
        rows = W[:, :: max(1, W.shape[1] // TRIAL)].contiguous()

        def error(s_W: float) -> float:
            _, E = assign(rows / s_W, curvature, codebook, 1)
            return s_W**2 * (E * (curvature.H @ E)).sum().item()  # tr(E^T H E)

        # W~ / s_W has the rms width * spread.
        candidates = [rms / (width * codebook.spread) for width in WIDTHS]
        return min(candidates, key=error)

    @torch.no_grad()
    def curvature(
        self, weight: Tensor, scheme: Scheme, stats: LinearStats | None = None
    ) -> Curvature:
        """H~ and its factors, for a weight (out, in).

        H is the identity where no token, or only zeros, came. MethodError where no regularization
        makes H~ positive definite.
        """
        n = weight.shape[1]
        d = max(size for size in range(1, self.limit(scheme.bits) + 1) if n % size == 0)
        H = torch.eye(n, device=weight.device)
        if stats is not None:
            mean = stats.hessian.diagonal().mean().item()
            if mean > 0:
                H = stats.hessian.float() / mean
        su = self.input_scales(weight)
        G = H * su * su[:, None]
        G /= G.diagonal().mean()
        G.diagonal().add_(self.regularization)
        # With E~ = E diag(1 / SU) T_n and this H~, E~ H~ E~^T is E H E^T in the measure of G.
        return Curvature.factor(two_sided(G), d, self.regularization)

    def input_scales(self, weight: Tensor) -> Tensor:
        """SU (in,) float32: random signs times the size of the weights of each input."""
        signs = random_signs(weight.shape[1], self.seed, weight)
        if not self.scaled_inputs:
            return signs
        W = weight.float()
        rms = W.square().mean(1, keepdim=True).sqrt()
        sizes = torch.where(rms > 0, W / rms, 0).square().mean(0).sqrt()  # (in,)
        mean = sizes.square().mean().sqrt()
        return signs * torch.where(mean > 0, sizes / mean, 1).clamp(min=LEAST)

    def limit(self, bits: int) -> int:
        """The largest dimension d of a codebook with this many bits."""
        return self.dimension

    def codebook(self, d: int, bits: int, device: torch.device) -> Codebook:
        """The codewords at the start: a grid in random rotation."""
        return _rotated_grid(d, bits, self.seed, device)


@dataclass(frozen=True)
class UniSVQUntied(UniSVQ):
    """UniSVQ with a free map of the bits, M s: the form that has a coding gain on Gaussian weights.

    M starts where it is best for Gaussian vectors. The dimension is limited such that there are at
    most 4096 codewords, because all of them are searched.
    """

    name: ClassVar[str] = "unisvq-untied"
    paper: ClassVar[str] = (
        "UniSVQ, arXiv:2606.10520, with a free map of the bits as in LiftQuant, arXiv:2606.04050"
    )

    sweeps: int = 3

    def limit(self, bits: int) -> int:
        """The largest d up to `dimension` with at most `CODEWORDS` codewords."""
        # 2^(d bits) <= CODEWORDS, a power of two
        return min(self.dimension, (CODEWORDS.bit_length() - 1) // bits)

    def codebook(self, d: int, bits: int, device: torch.device) -> Codebook:
        """The map fitted to Gaussian vectors."""
        return _sign_map(d, bits, self.seed, device)


# One object for all layers: what is recorded for it on a GPU serves them all.
@cache
def _rotated_grid(d: int, bits: int, seed: int, device: torch.device) -> RotatedGrid:
    G = rotation(d, torch.Generator().manual_seed(seed))
    return RotatedGrid(G.to(device), bits)


@cache
def _sign_map(d: int, bits: int, seed: int, device: torch.device) -> SignMap:
    return SignMap(gaussian_map(d, bits, seed).to(device), bits)


class LatticeWeight(TrainedWeight):
    """One weight in training, float32.

    Parameters: map (d, k), offset (d,) or None, and the relative factors u (in,) of SU and v (out,)
    of SV.
    """

    def __init__(
        self, codes: Tensor, codebook: Codebook, su: Tensor, sv: Tensor, bits: int, recipe: UniSVQ
    ) -> None:
        """codes (out, in) uint8; su (in,) and sv (out,) float32, the scales where u and v are 1."""
        super().__init__()
        self.codes = codes
        self.su = su
        self.sv = sv
        self.recipe = recipe
        self.start = Lattice.from_codes(
            codes, codebook.map, codebook.offset, su, sv, bits, codebook.features
        )
        self.map = nn.Parameter(codebook.map.clone())
        self.offset = None if codebook.offset is None else nn.Parameter(codebook.offset.clone())
        self.u = nn.Parameter(torch.ones_like(su))
        self.v = nn.Parameter(torch.ones_like(sv))

    def forward(self) -> Tensor:
        """(out, in) float32."""
        features = features_of(self.codes, len(self.map), self.start.bits, self.start.features)
        return decode(
            features, self.map, self.offset, self.su * self.u, self.sv * self.v, self.start.blocks
        )

    @torch.no_grad()
    def export(self) -> Lattice:
        """The codes, with the parameters as they are stored."""
        # Clones: what is stored as float32 would else be the very tensor that goes on training.
        largest = self.map.abs().amax()
        map = as_stored(self.map.clone(), beside=largest)
        offset = None if self.offset is None else as_stored(self.offset.clone(), beside=largest)
        su = as_stored(self.su * self.u)
        sv = as_stored(self.sv * self.v)
        return replace(self.start, map=map, offset=offset, su=su, sv=sv)

    def groups(self) -> Groups:
        """The map and its offset at one rate, the scales at another."""
        maps = [self.map]
        if self.offset is not None:
            maps.append(self.offset)
        return [
            {"params": maps, "lr": self.recipe.lr_map},
            {"params": [self.u, self.v], "lr": self.recipe.lr_signs},
        ]
