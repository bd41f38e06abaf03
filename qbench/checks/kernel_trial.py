"""A kernel under a check: random weights and inputs where it runs, and a bound on its error."""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.checks.verdict import Broke
from qbench.contracts import WeightFormat
from qbench.formats import FORMATS, from_tensors
from qbench.kernels import dispatch, reference
from qbench.kernels.contract import Kernel
from qbench.kernels.description import moved
from qbench.kernels.samples import MAKERS, STEPPED_MAKERS

OUT, IN, GROUP, BITS, ROWS = 40, 256, 64, 3, 5  # of a check that varies something else
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Trial:
    """A kernel under a check. It counts the products that it served, and why it refused others."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.served = 0
        self.refusal = ""
        self.device = "cpu"
        if kernel.devices is not None:
            self.device = kernel.devices[0]

    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Those of x that the kernel serves."""
        if self.kernel.dtypes is None:
            return DTYPES
        return self.kernel.dtypes

    def formats(self) -> tuple[str, ...]:
        """Those that the kernel serves."""
        if self.kernel.formats is None:
            return tuple(FORMATS)
        return self.kernel.formats

    def widths(self, kind: str) -> range:
        """Bits that the kernel serves in this format; a dense weight has none to vary."""
        if kind == "dense":
            return range(BITS, BITS + 1)
        least, most = self.kernel.bits or (1, 8)
        return range(least, most + 1)

    def serves(self, x: Tensor, weight: WeightFormat) -> bool:
        """Whether the kernel serves this product; its refusal is kept."""
        refusal = self.kernel.refusal(dispatch.request(x, weight))
        if refusal is None:
            return True
        self.refusal = refusal
        return False

    def multiply(self, x: Tensor, weight: WeightFormat, bias: Tensor | None = None) -> Tensor:
        """The kernel's product, of the right dtype and shape. Broke where it is not, or raises."""
        with dispatch.using(self.kernel.name):
            try:
                y = dispatch.linear(x, weight, bias)
            except Exception as error:  # it declared that it serves this
                raise Broke(f"it raised {type(error).__name__}: {error}") from error
        shape = (*x.shape[:-1], weight.shape[0])
        if tuple(y.shape) != shape or y.dtype != x.dtype or y.device.type != x.device.type:
            raise Broke(
                f"the result is {y.dtype} {tuple(y.shape)} on {y.device}, "
                f"not {x.dtype} {shape} on {x.device}"
            )
        self.served += 1
        return y

    def compare(
        self, x: Tensor, weight: WeightFormat, bias: Tensor | None = None, what: str = ""
    ) -> None:
        """Broke where the product is further from the reference than the kernel declares."""
        if not self.serves(x, weight):
            return
        try:
            y = self.multiply(x, weight, bias)
            self.close(y, exact(x, weight, bias), x.dtype)
        except Broke as broken:
            name = str(x.dtype).removeprefix("torch.")
            place = f"{weight.format}, {tuple(weight.shape)}, {tuple(x.shape)} {name} x"
            raise Broke(f"{what or 'a product'} ({place}): {broken}") from broken

    def close(self, y: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
        """Broke where y is further from expected, float64, than declared for x of this dtype."""
        size = expected.norm().item()
        error = (y.double() - expected).norm().item()
        bound = self.kernel.bound(dtype)
        if not error <= bound * size:  # also where it is NaN
            relative = error
            if size:
                relative = error / size
            raise Broke(f"relative error {relative:.2g}, declared are at most {bound:.2g}")


def exact(x: Tensor, weight: WeightFormat, bias: Tensor | None = None) -> Tensor:
    """The product in float64, by the reference, on the device of x."""
    constant = None if bias is None else bias.double()
    return reference.linear(x.double(), weight, constant)


def sample(
    trial: Trial,
    kind: str,
    shape: tuple[int, int] = (OUT, IN),
    bits: int = 0,
    group: int = GROUP,
    seed: int = 0,
) -> WeightFormat:
    """A random weight (out, in) where the kernel runs; bits: 0 for the nearest to BITS served."""
    widths = trial.widths(kind)
    width = bits or min(max(BITS, widths[0]), widths[-1])
    return moved(MAKERS[kind](shape, width, group, seed), trial.device)


def storages(trial: Trial, kind: str, seed: int = 0) -> list[WeightFormat]:
    """Random weights (OUT, IN) where the kernel runs: one for each way to store the format."""
    weights = [sample(trial, kind, seed=seed)]
    if kind in STEPPED_MAKERS:
        bits = weights[0].spec().get("bits", BITS)
        stepped = STEPPED_MAKERS[kind]((OUT, IN), bits, GROUP, seed)
        weights.append(moved(stepped, trial.device))
    return weights


def views_of(weight: WeightFormat) -> dict[str, WeightFormat]:
    """Other weights whose tensors are views of this one's: what they are, in words -> weight.

    Each begins where this one does, so that its strides or its shape alone tell it apart.
    """
    tensors = weight.to_tensors()
    changed = {
        f"one row of {part} for all": {part: tensor[:1].expand_as(tensor)}
        for part, tensor in tensors.items()
    }
    if "alpha" in tensors and len(tensors["planes"]) > 1:
        changed["all planes but the last"] = {
            "planes": tensors["planes"][:-1],
            "alpha": tensors["alpha"][..., :-1],
        }
    return {
        what: from_tensors(weight.format, tensors | views, weight.spec())
        for what, views in changed.items()
    }


def scaled(weight: WeightFormat, factor: float) -> WeightFormat:
    """`factor` times the weight, by its scales."""
    # Everything that the weight is linear in: codes, zero points and maps stay.
    scales = ("alpha", "shift", "alpha_span")
    parts = {
        "binary": scales,
        "rotated-binary": scales,
        "uniform": ("scale", "scale_span"),
        "lattice": ("sv",),
    }
    tensors = weight.to_tensors()
    for part in parts.get(weight.format, ("weight",)):
        if part in tensors:
            tensors[part] = tensors[part] * factor
    return from_tensors(weight.format, tensors, weight.spec())


def inputs(trial: Trial, rows: int, columns: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """x (rows, columns), normally distributed, on the kernel's device."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    return x.to(trial.device, dtype)
