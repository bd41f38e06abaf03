"""What `qbench latency` is asked for: matrices, by size or by the name of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from qbench.contracts import Scheme
from qbench.environment import available_memory, pick_device
from qbench.errors import ConfigError, unknown_name
from qbench.kernels import contract as kernel_contract
from qbench.kernels.registry import get_kernel
from qbench.latency import timing
from qbench.latency.timing import Candidate, Row, Shape

# (out, in) of each kind of linear layer in a block: attention's q and o, k and v; the MLP's up and
# gate, down.
SHAPES = {
    "llama3-8b": [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)],
    "llama3-70b": [(8192, 8192), (1024, 8192), (28672, 8192), (8192, 28672)],
    "qwen3-8b": [(4096, 4096), (1024, 4096), (12288, 4096), (4096, 12288)],
}
FORMATS = {"binary": (1, 8), "uniform": (1, 8)}  # that can be timed: the least and the most bits
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Request:
    """What is to be timed: every shape with every width in every format.

    bits: per weight code. group_size: inputs that share a scale; None: all of an output. kernels:
    names; empty: all that serve the request and want to be timed. without: other programs that are
    not tried on a GPU, by name, each with the reason.
    """

    shapes: Sequence[Shape]
    bits: Sequence[int]
    formats: Sequence[str]
    group_size: int | None
    kernels: Sequence[str] = ()
    without: Mapping[str, str] = field(default_factory=dict)

    def group_of(self, shape: Shape) -> int:
        """Inputs that share a scale in a weight of this shape."""
        return shape.columns if self.group_size is None else self.group_size


def shapes_of(names: Iterable[str], batch: Iterable[int]) -> list[Shape]:
    """Shapes of `llama3-8b` and the like, or of `OUTxIN`, for every batch; each once.

    ConfigError for another name, and where nothing is left to time.
    """
    matrices: list[tuple[int, int]] = []
    for name in names:
        size = re.fullmatch(r"(\d{1,18})x(\d{1,18})", name)
        if size is not None:
            matrices.append((int(size[1]), int(size[2])))
        elif name in SHAPES:
            matrices += SHAPES[name]
        else:
            raise ConfigError(
                unknown_name("shape", name, SHAPES) + "; or give OUTxIN, such as 4096x4096"
            )
    shapes = []
    batches = list(batch)
    for out, columns in matrices:
        shapes += [Shape(out, columns, rows) for rows in batches]
    if not shapes or min(min(shape) for shape in shapes) < 1:
        raise ConfigError("there is nothing to time: give shapes and batches of at least 1")
    return list(dict.fromkeys(shapes))


def check_request(request: Request, device: str = "auto") -> None:
    """ConfigError where a format, its bits, the groups or a kernel cannot be timed.

    Also where the device is not here, or has no room for one of the products.
    """
    chosen = device_of(device)
    room = _room(chosen)
    for name in request.formats:
        if name not in FORMATS:
            raise ConfigError(unknown_name("format", name, FORMATS))
        low, high = FORMATS[name]
        for width in request.bits:
            if not low <= width <= high:
                raise ConfigError(f"--bits {width} is outside {low}..{high} of the format {name!r}")
    for shape in request.shapes:
        if shape.columns % 32 or request.group_of(shape) % 32:
            raise ConfigError(
                f"{shape}: inputs and groups must be multiples of 32; the groups are "
                f"{request.group_of(shape)}"
            )
        Scheme(4, request.group_size).group_length(shape.columns, str(shape), 32)
    for name in request.kernels:
        get_kernel(name)
    for shape in request.shapes:
        least = shape.least_bytes + _bytes_of_copies(shape, request, chosen)
        if least > room:
            raise ConfigError(
                f"{shape}: its products take at least {least / 1e9:.1f} GB, and "
                f"{room / 1e9:.1f} GB of memory are free; give fewer rows, --bits, formats or "
                f"kernels at a time, or a smaller matrix"
            )


def _bytes_of_copies(shape: Shape, request: Request, device: str) -> int:
    """What the weights take that are read cold: those of dense products and of kernels.

    Scales and zero points come on top, and so do the weights of other programs.
    """
    from qbench.latency.candidates import DTYPES, timed_kernels

    size = shape.out * shape.columns
    weights = [4 * size, 2 * size]
    for width, kind, dtype in product(request.bits, request.formats, DTYPES[device]):
        asked = kernel_contract.Request(
            kind, width, request.group_of(shape), shape.weight, device, dtype, shape.rows
        )
        for kernel in timed_kernels(device, request.kernels):
            if kernel.refusal(asked) is None:
                weights.append(width * size // 8)
    return sum(timing.copies_of(nbytes, device) * nbytes for nbytes in weights)


def time_shape(
    shape: Shape, request: Request, rounds: int, device: str = "auto", threads: int = 1
) -> tuple[list[Row], dict[str, str]]:
    """Rows of the probes, the dense products, the kernels and other programs; and what is missing.

    The three probes are memory, products in bfloat16 and products in float32. What is missing:
    names of kernels and programs that were not timed, and why. device: `cpu`, on so many threads,
    `cuda`, or `auto`. ConfigError for another, or where it is not here.
    """
    if device_of(device) == "cuda":
        return _on_gpu(shape, request, rounds)
    with timing.threads(threads):
        return _on_cpu(shape, request, rounds)


def device_of(device: str) -> str:
    """`cpu` or `cuda`, for one of these or `auto`. ConfigError for another name."""
    chosen = pick_device(device)
    if chosen not in DEVICES:
        raise ConfigError(unknown_name("device", device, ("auto", *DEVICES)))
    return chosen


def _room(device: str) -> int:
    """Bytes that are free on `cpu` or `cuda`."""
    if device == "cpu":
        return available_memory()
    import torch

    return int(torch.cuda.mem_get_info()[0])


def _on_cpu(shape: Shape, request: Request, rounds: int) -> tuple[list[Row], dict[str, str]]:
    from qbench.latency.cpu import probes
    from qbench.latency.peers import peers

    candidates, missing = _candidates(shape, request, "cpu", peers(shape), probes)
    return timing.time_interleaved(shape, candidates, rounds), missing


def _on_gpu(shape: Shape, request: Request, rounds: int) -> tuple[list[Row], dict[str, str]]:
    import torch

    from qbench.latency.gpu import graph_clock, probes, require_gpu
    from qbench.latency.gpu_peers import peers

    require_gpu()
    others = peers(shape, request.without)
    candidates, missing = _candidates(shape, request, "cuda", others, probes)
    name = torch.cuda.get_device_name()
    return timing.time_interleaved(shape, candidates, rounds, 1, graph_clock, name), missing


def _candidates(
    shape: Shape,
    request: Request,
    device: str,
    peers: tuple[list[Candidate], dict[str, str]],
    probes: Callable[[], list[Candidate]],
) -> tuple[list[Candidate], dict[str, str]]:
    """All that is timed on a device, and why a kernel or a program is not.

    peers: what other programs have for this shape, and why some have nothing.
    """
    from qbench.latency.candidates import dense_candidates, kernel_candidates

    others, missing = peers
    kernels, refused = kernel_candidates(
        shape, request.bits, request.group_of(shape), request.formats, device, request.kernels
    )
    return [*probes(), *dense_candidates(shape, device), *kernels, *others], refused | missing
