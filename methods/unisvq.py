"""UniSVQ: vectors of weights as an affine image of integer codes, after a Hadamard transform on both sides.

UniSVQ, ICML 2026, arXiv:2606.10520, and its code (AI9Stars/UniSVQ). As in the paper, d consecutive
weights of a row of W~ / s_W are A z + b, z in {0..2^B-1}^d, with one A and b for the whole matrix
and

    W~ = T_m diag(SV) W diag(SU) T_n,    H~ = T_n diag(SU) (H / mean(diag H) + regularization I) diag(SU) T_n,

random signs SU and SV, and orthonormal Hadamard matrices T. Codes come from BlockLDLQ and sweeps of
coordinate descent on tr(E H~ E^T), E = W~ - W~^; then A, b, SU and SV are trained on the block's
output while the codes stay.

Where this differs from the authors' code: every row of W is divided by its own root mean square
(theirs: the whole matrix by one), so that small rows, and zeros, keep their relative precision; s_W
is searched (theirs: rms / 0.83); a row takes a step of a sweep only where that lowers its error; SU
and SV are trained relative to their start.

For Gaussian weights A z + b has no advantage over a scalar grid: with a rotation A the two are the
same. The method `unisvq-untied` frees the map of the bits: M s with s in {-1, +1}^(dB). The tied
form is M = [2^(B-2) A, .., A, A / 2].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qbench.calibration.reconstruction import (
    Groups,
    Reconstruction,
    TrainedWeight,
    Weights,
    reconstruct,
)
from qbench.calibration.walk import InputStatistics
from qbench.contracts import BlockInputs, BlockResult, LinearStats, Scheme
from qbench.errors import ConfigError
from qbench.formats import Lattice
from qbench.formats.hadamard import block_length, hadamard
from qbench.formats.lattice import decode, features_of
from qbench.formats.packing import as_stored
from qbench.methods.vector_rounding import (
    Codebook,
    Curvature,
    RotatedGrid,
    SignMap,
    assign,
    gaussian_map,
    rotation,
)
from qbench.models.blocks import linears, read_weight

CODEWORDS = 4096  # at most so many are searched
WIDTHS = (
    1.0,
    0.93,
    0.86,
    0.79,
)  # of rms(W~) / s_W, by what is best for Gaussian vectors rounded to nearest
TRIAL = 128  # rows that choose among them, less than twice as many


@dataclass(frozen=True)
class UniSVQ(Reconstruction):
    """Lattice codes with one affine map per matrix, trained on the output of a block.

    There are no groups: `group_size` is only checked. dimension: d, at most; it is the largest
    divisor of the layer's inputs up to that. sweeps: of coordinate descent. regularization: of the
    Hessian, as a part of its mean diagonal; 10, 100 and 1000 times as much is added where there is
    no Cholesky factor. scale: rms(W~) / s_W; None searches, layer by layer. lr_map: of A and b.
    lr_signs: of SU and SV, relative. seed: also of the signs and the rotation.
    """

    name: ClassVar[str] = "unisvq"
    paper: ClassVar[str] = "UniSVQ, ICML 2026, arXiv:2606.10520"
    format: ClassVar[str] = "lattice"
    bits: ClassVar[tuple[int, int]] = (2, 3)
    symmetric: ClassVar[bool] = False
    exceptions: ClassVar[Mapping[str, str]] = {
        "check_zeros_and_constants": "random signs and the Hadamard transform turn a constant into noise"
    }

    dimension: int = 4
    sweeps: int = 5
    regularization: float = 1e-2
    scale: float | None = None
    lr_map: float = 5e-5
    lr_signs: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = self.dimension >= 1 and (self.scale is None or self.scale > 0)
        if not positive or self.sweeps < 0 or self.regularization < 0:
            raise ConfigError(
                f"dimension={self.dimension}, sweeps={self.sweeps}, regularization={self.regularization}, "
                f"scale={self.scale}: dimension must be 1 or more, sweeps and regularization 0 or more, scale positive"
            )

    def quantize_block(
        self, block: nn.Module, inputs: BlockInputs, targets: list[Tensor], scheme: Scheme
    ) -> BlockResult:
        """Codes for every linear layer from the Hessian of its inputs, then training on the block's output."""
        inputs.progress(0.0, "collecting Hessians")
        statistics = input_statistics(block, inputs)
        weights: dict[str, TrainedWeight] = {}
        last, curvature = None, None
        for name, layer in linears(block).items():
            inputs.progress(0.0, f"initializing {name}")
            weight, stats = read_weight(layer), statistics.get(name)
            if curvature is None or stats is None or stats is not last:
                last, curvature = stats, self.curvature(weight, scheme, stats)
            weights[name] = self.prepare(weight, scheme, curvature)
        return reconstruct(block, Weights(block, weights), inputs, targets, self)

    @torch.no_grad()
    def prepare(
        self, weight: Tensor, scheme: Scheme, curvature: Curvature | None = None
    ) -> LatticeWeight:
        """(out, in) -> its codes, and what is trained. Without a curvature: for white inputs."""
        scheme.group_length(weight.shape[1])
        curvature = curvature or self.curvature(weight, scheme)
        codebook = self.codebook(curvature.d, scheme.bits, weight.device)
        su, sv = (
            random_signs(weight.shape[1], self.seed, weight),
            random_signs(len(weight), self.seed + 1, weight),
        )
        rms = weight.float().square().mean(1).sqrt()  # (out,)
        W = two_sided(weight.float() * torch.where(rms > 0, sv / rms, 0)[:, None] * su)
        W = W.T.contiguous()  # (in, out)
        s_W = self.step(W, curvature, codebook)
        codes, _ = assign(W / s_W, curvature, codebook, self.sweeps)
        return LatticeWeight(codes.T.contiguous(), codebook, su, sv * rms * s_W, scheme.bits, self)

    def step(self, W: Tensor, curvature: Curvature, codebook: Codebook) -> float:
        """s_W for W~ (in, out). The search looks at some of the rows only: the transform has made them alike."""
        rms = W.square().mean().sqrt().item()
        if self.scale is not None or not rms:
            return rms / (self.scale or 1.0) or 1.0
        rows = W[:, :: max(1, W.shape[1] // TRIAL)].contiguous()

        def error(s_W: float) -> float:
            _, E = assign(rows / s_W, curvature, codebook, 1)
            return s_W**2 * (E * (curvature.H @ E)).sum().item()

        return min((rms / (width * codebook.spread) for width in WIDTHS), key=error)

    @torch.no_grad()
    def curvature(
        self, weight: Tensor, scheme: Scheme, stats: LinearStats | None = None
    ) -> Curvature:
        """H~ and its factors, for all layers with these inputs. The identity where no token, or only zeros, came."""
        n = weight.shape[1]
        d = max(size for size in range(1, self.limit(scheme.bits) + 1) if n % size == 0)
        mean = 0.0 if stats is None else stats.hessian.diagonal().mean().item()
        H = torch.eye(n, device=weight.device)
        if stats is not None and mean > 0:
            H = H.mul_(self.regularization).add_(stats.hessian.float(), alpha=1 / mean)
        su = random_signs(n, self.seed, weight)
        return Curvature.factor(two_sided(H * su * su[:, None]), d, self.regularization)

    def limit(self, bits: int) -> int:
        """The largest d."""
        return self.dimension

    def codebook(self, d: int, bits: int, device: torch.device) -> Codebook:
        """The codewords at the start: a grid in random rotation."""
        return RotatedGrid(rotation(d, torch.Generator().manual_seed(self.seed)).to(device), bits)


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
        """As far as the number of codewords allows."""
        return min(self.dimension, (CODEWORDS.bit_length() - 1) // bits)

    def codebook(self, d: int, bits: int, device: torch.device) -> Codebook:
        """The map fitted to Gaussian vectors."""
        return SignMap(gaussian_map(d, bits, self.seed).to(device), bits)


class LatticeWeight(TrainedWeight):
    """One weight in training: map (d, k), offset (d,), and relative factors u (in,) of SU and v (out,) of SV."""

    def __init__(
        self, codes: Tensor, codebook: Codebook, su: Tensor, sv: Tensor, bits: int, recipe: UniSVQ
    ) -> None:
        """codes (out, in) uint8; su (in,) and sv (out,) float32, the scales where u and v are 1."""
        super().__init__()
        self.codes, self.su, self.sv, self.recipe = codes, su, sv, recipe
        self.start = Lattice.from_codes(
            codes, codebook.map, codebook.offset, su, sv, bits, codebook.features
        )
        self.map = nn.Parameter(codebook.map.clone())
        self.offset = None if codebook.offset is None else nn.Parameter(codebook.offset.clone())
        self.u, self.v = nn.Parameter(torch.ones_like(su)), nn.Parameter(torch.ones_like(sv))

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
        map, offset = (
            as_stored(self.map.clone()),
            None if self.offset is None else as_stored(self.offset.clone()),
        )
        su, sv = as_stored(self.su * self.u), as_stored(self.sv * self.v)
        return replace(self.start, map=map, offset=offset, su=su, sv=sv)

    def groups(self) -> Groups:
        """The map and its offset at one rate, the scales at another."""
        maps = [self.map] if self.offset is None else [self.map, self.offset]
        return [
            {"params": maps, "lr": self.recipe.lr_map},
            {"params": [self.u, self.v], "lr": self.recipe.lr_signs},
        ]


def random_signs(n: int, seed: int, like: Tensor) -> Tensor:
    """(n,) float32 in {-1, +1}, the same on every device, on that of `like`."""
    return (torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1).to(
        like.device
    )


def two_sided(X: Tensor) -> Tensor:
    """T_m X T_n of (m, n) float32."""
    m, n = X.shape
    return hadamard(hadamard(X, block_length(n), 1), block_length(m), 0)


@torch.no_grad()
def input_statistics(block: nn.Module, inputs: BlockInputs) -> dict[str, LinearStats]:
    """By layer, the statistics of its inputs in the quantized stream, with the block as it is.

    Layers that are called with the same tensor, one after the other, share one object. A layer that
    no token reaches is missing. MethodError naming a layer whose inputs are not finite.
    """
    names = {layer: name for name, layer in linears(block).items()}
    statistics, owners = InputStatistics(), dict[str, str]()
    found: dict[str, LinearStats] = {}
    last: list[Any] = [None, ""]

    def collect(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        name = names[layer]
        new = statistics.of([args[0]], name)
        if new is not last[0]:
            last[:] = new, name
            old = found.get(name, LinearStats(torch.zeros_like(new.hessian), 0))
            count = old.count + new.count
            found[name] = LinearStats(
                torch.lerp(old.hessian, new.hessian, new.count / max(count, 1)), count
            )
        owners[name] = last[1]

    hooks = [layer.register_forward_pre_hook(collect) for layer in names]
    try:
        for batch, hidden in enumerate(inputs.quantized):
            inputs.run(block, hidden, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found[owner] for name, owner in owners.items()}
