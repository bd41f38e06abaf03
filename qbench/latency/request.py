"""What `qbench latency` is asked for: matrices by the name of a model or by size, checked, and timed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qbench.contracts import Scheme
from qbench.environment import pick_device
from qbench.errors import ConfigError, unknown_name
from qbench.latency import timing
from qbench.latency.timing import Row, Shape

SHAPES = {  # (out, in) of each kind of linear layer in a block: attention's q and o, k and v; the MLP's up and down
    "llama3-8b": [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)],
    "llama3-70b": [(8192, 8192), (1024, 8192), (28672, 8192), (8192, 28672)],
    "qwen3-8b": [(4096, 4096), (1024, 4096), (12288, 4096), (4096, 12288)],
}
FORMATS = {"binary": (1, 8), "uniform": (1, 8)}  # bits, inclusive


def shapes_of(names: Iterable[str], batch: Iterable[int]) -> list[Shape]:
    """Shapes of `llama3-8b` and the like, or of `OUTxIN`, for every batch. ConfigError for anything else."""
    found = []
    for name in names:
        pair = re.fullmatch(r"(\d+)x(\d+)", name)
        if pair is None and name not in SHAPES:
            raise ConfigError(
                unknown_name("shape", name, SHAPES) + "; or give OUTxIN, such as 4096x4096"
            )
        found += SHAPES[name] if pair is None else [(int(pair[1]), int(pair[2]))]
    rows = list(batch)
    if not found or not rows or min(rows) < 1 or min(min(pair) for pair in found) < 1:
        raise ConfigError("there is nothing to time: give shapes and batches of at least 1")
    return [Shape(out, columns, count) for out, columns in found for count in rows]


@dataclass(frozen=True)
class Request:
    """What is to be timed: every shape with every width in every format."""

    shapes: Sequence[Shape]
    bits: Sequence[int]
    formats: Sequence[str]
    group_size: int


def check_request(request: Request) -> None:
    """ConfigError where a format, its bits or the groups cannot be timed, before anything is."""
    for name in request.formats:
        if name not in FORMATS:
            raise ConfigError(unknown_name("format", name, FORMATS))
        low, high = FORMATS[name]
        for width in request.bits:
            if not low <= width <= high:
                raise ConfigError(f"--bits {width} is outside {low}..{high} of the format {name!r}")
    for shape in request.shapes:
        if shape.columns % 32 or request.group_size % 32:
            raise ConfigError(
                f"{shape}: inputs and groups must be multiples of 32; the groups are {request.group_size}"
            )
        Scheme(4, request.group_size).group_length(shape.columns, str(shape))


def time_shape(
    shape: Shape, request: Request, rounds: int, device: str = "auto", threads: int = 1
) -> tuple[list[Row], dict[str, str]]:
    """Rows of the probes, the dense products, ours and other programs'; and which programs are not here, and why.

    device: `cpu`, on so many threads, `cuda`, or `auto`. ConfigError for another, or where it is
    not here.
    """
    if (found := pick_device(device)) not in ("cpu", "cuda"):
        raise ConfigError(unknown_name("device", device, ("auto", "cpu", "cuda")))
    asked = shape, request.bits, request.group_size, request.formats
    if found == "cuda":
        import torch

        from qbench.latency import gpu

        gpu.require_gpu()
        others, missing = gpu.peers(shape)
        ours = [*gpu.probes(), *gpu.candidates(*asked), *others]
        where = torch.cuda.get_device_name()
        return timing.time_interleaved(shape, ours, rounds, 1, gpu.graph_clock, where), missing
    from qbench.latency.peers import peers

    with timing.threads(threads):
        others, missing = peers(shape)
        ours = [*timing.probes(), *timing.candidates(*asked), *others]
        return timing.time_interleaved(shape, ours, rounds), missing
