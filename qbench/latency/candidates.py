"""What is timed on every device: dense products, and all registered kernels that serve the request.

A kernel appears here because it is registered; nothing is listed by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import QbenchError
from qbench.kernels.contract import Kernel, Prepared
from qbench.kernels.description import moved, prepare
from qbench.kernels.dispatch import request
from qbench.kernels.registry import all_kernels, get_kernel
from qbench.kernels.samples import MAKERS
from qbench.kernels.sharing import kept, sharing
from qbench.latency.timing import Candidate, Shape, copies_of

DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16,)}  # of x, that are timed
SEED = 0  # of the weights
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
DENSE_LIMITS = {  # of the relative error; on GPUs float32 products may be rounded to TF32's sums
    "cpu": {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2},
    "cuda": {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2},
}


def random_matrix(rows: int, columns: int, seed: int, device: str = "cpu") -> Tensor:
    """(rows, columns) float32, normally distributed, the same for the same seed and device."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, device=device)


def dense_candidates(shape: Shape, device: str = "cpu") -> list[Candidate]:
    """torch's own product with a dense weight, in float32 and in bfloat16."""
    x = random_matrix(shape.rows, shape.columns, 1, device)
    weight = random_matrix(shape.out, shape.columns, 2, device)
    return [dense_candidate(weight, x.to(dtype)) for dtype in (torch.float32, torch.bfloat16)]


def dense_candidate(weight: Tensor, x: Tensor) -> Candidate:
    """torch's product of x (rows, in) with a dense weight (out, in), in the dtype of x."""
    stored = weight.to(x.dtype)

    def make() -> Prepared:
        copy = stored.clone()

        def run(x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, copy)

        return Prepared(run, copy.nbytes)

    limit = DENSE_LIMITS[x.device.type][x.dtype]
    return repeated(f"dense {SHORT[x.dtype]}", make, x, stored.double(), limit)


def timed_kernels(device: str, names: Sequence[str] = ()) -> list[Kernel]:
    """The kernels of these names; without one, those for the device that want to be timed.

    ConfigError for an unknown name.
    """
    if names:
        return [get_kernel(name) for name in names]
    kernels = []
    for kernel in all_kernels().values():
        if kernel.timed and (kernel.devices is None or device in kernel.devices):
            kernels.append(kernel)
    return kernels


def kernel_candidates(
    shape: Shape,
    bits: Iterable[int],
    group_size: int,
    formats: Sequence[str],
    device: str = "cpu",
    names: Sequence[str] = (),
) -> tuple[list[Candidate], dict[str, str]]:
    """The kernels' products for every width, format and dtype of x, and why a kernel has none.

    names: the kernels to time; by default those for this type of device that want to be timed.
    ConfigError for an unknown name.
    """
    kernels = timed_kernels(device, names)
    x = random_matrix(shape.rows, shape.columns, 1, device)
    candidates: list[Candidate] = []
    serving: set[str] = set()
    refusals: dict[str, str] = {}
    for width, kind in product(bits, formats):
        weight = _weight(kind, shape.weight, width, group_size, device)
        for dtype, kernel in product(DTYPES[device], kernels):
            refusal = kernel.refusal(request(x.to(dtype), weight))
            if refusal is not None:
                refusals[kernel.name] = refusal
                continue
            serving.add(kernel.name)
            candidate = kernel_candidate(kernel, weight, x.to(dtype), width)
            candidates += [candidate, *_with_shared_inputs(candidate)]
    missing = {name: reason for name, reason in refusals.items() if name not in serving}
    return candidates, missing


def kernel_candidate(kernel: Kernel, weight: WeightFormat, x: Tensor, bits: int) -> Candidate:
    """The product of this kernel with x (rows, in), on copies of the weight as the kernel reads it.

    bits: of the codes, for the name. QbenchError where the kernel raises.
    """
    label = kernel.name if kernel.label is None else kernel.label
    words = (weight.format, label, f"{bits}b", SHORT[x.dtype])
    name = " ".join(word for word in words if word)
    _try(kernel, weight, x)
    meaning = weight.dequantize().double()
    return repeated(name, partial(prepare, kernel, weight), x, meaning, kernel.bound(x.dtype))


def _with_shared_inputs(candidate: Candidate) -> Iterator[Candidate]:
    """The same products where x is prepared once for all; none of a kernel that prepares nothing.

    So the projections of one attention block compute, which read the same x.
    """
    with sharing():
        candidate.run(0)
        if not kept():
            return
    yield replace(candidate, name=f"{candidate.name}, x shared", scope=sharing)


def repeated(
    name: str,
    make: Callable[[], Prepared],
    x: Tensor,
    weight: Tensor,
    limit: float,
) -> Candidate:
    """The product of x (rows, in) with a weight, on more copies of it than the cache holds.

    make: gives one copy. weight (out, in) float64: what each of them stands for.
    """
    copies = [make()]
    nbytes = copies[0].nbytes
    another = copies[0].copied or make
    copies += [another() for _ in range(copies_of(nbytes, x.device.type) - 1)]

    def run(copy: int) -> Tensor:
        return copies[copy].run(x)

    bits = 8 * nbytes / weight.numel()
    wide = x.double()
    size = usual_size(wide, weight)
    return Candidate(name, bits, nbytes, len(copies), run, wide @ weight.T, limit, size=size)


def usual_size(x: Tensor, weight: Tensor) -> float:
    """The norm that a product has where x (rows, in) and weight (out, in) are independent."""
    # sum_i x_i^2 w_i^2 for each output, each square of x taken as their mean
    return float(x.norm() * weight.norm()) / weight.shape[1] ** 0.5


@lru_cache(maxsize=12)  # shapes that differ in their rows alone share it
def _weight(
    kind: str, shape: tuple[int, int], bits: int, group_size: int, device: str
) -> WeightFormat:
    return moved(MAKERS[kind](shape, bits, group_size, SEED), device)


def _try(kernel: Kernel, weight: WeightFormat, x: Tensor) -> None:
    """One product. QbenchError that names the kernel where it raises."""
    try:
        prepare(kernel, weight).run(x)
    except QbenchError:
        raise
    except Exception as error:
        raise QbenchError(
            f"kernel {kernel.name!r} raised {type(error).__name__}: {error}; "
            f"`qbench check {kernel.name}` says what it cannot compute"
        ) from error
