"""What a product with a quantized weight costs: cold, interleaved, checked, and as a share of what the memory delivers.

cold         every candidate has copies of its weight, more bytes than the last-level cache, and takes them in turn
interleaved  each round runs every candidate, so that a slow minute of the machine is everybody's: once untimed, then
             some copies in a row, as the layers of a model follow each other
checked      a candidate is held against float64 before it is timed
share        bytes of the packed weight per second, in parts of the read bandwidth measured in the same rounds

Nothing of torch's global state is changed but the number of threads, inside `threads`.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from qbench.errors import QbenchError
from qbench.formats import Binary, Uniform
from qbench.kernels.cpu import products as cpu

GIB = 1 << 30


class Shape(NamedTuple):
    """A weight (out, columns) and the rows of x it is multiplied with."""

    out: int
    columns: int
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.out}x{self.columns}, batch {self.rows}"


@dataclass(frozen=True)
class Candidate:
    """One way to compute the product. run(i): with the i-th copy of the weight, -> (rows, out).

    nbytes: of the weight as this candidate reads it. expected: (rows, out) float64; limit: of the
    relative error. operations: additions and multiplications of the product that it stands for.
    """

    name: str
    bits: float
    nbytes: int
    copies: int
    run: Callable[[int], Tensor]
    expected: Tensor
    limit: float
    operations: int = 0

    def error(self) -> float:
        """Relative to float64. QbenchError where it exceeds the limit."""
        found = ((self.run(0).double() - self.expected).norm() / self.expected.norm()).item()
        if not found <= self.limit:
            raise QbenchError(
                f"{self.name} is wrong: relative error {found:.2g}, at most {self.limit:g} was expected"
            )
        return found


Clock = Callable[
    [Candidate], Callable[[int], float]
]  # -> seconds of the product with the i-th copy


@dataclass(frozen=True)
class Row:
    """One candidate's times, in seconds, as they came: `burst` of every round. device: the GPU, or `2 threads`."""

    shape: Shape
    device: str
    name: str
    bits: float
    nbytes: int
    operations: int
    error: float
    times: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.times)

    @property
    def spread(self) -> tuple[float, float]:
        """The tenth and the ninetieth percentile."""
        deciles = statistics.quantiles(self.times, n=10, method="inclusive")
        return deciles[0], deciles[-1]

    @property
    def rate(self) -> float:
        """Bytes of the weight per second."""
        return self.nbytes / self.seconds


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch, and the kernels with it, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cache_bytes() -> int:
    """Of the last-level cache; 64 MiB where the system does not tell."""
    sizes = [
        path.read_text() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    found = [
        int(m[1]) << {"K": 10, "M": 20}[m[2]]
        for size in sizes
        if (m := re.match(r"(\d+)([KM])", size))
    ]
    return max(found, default=64 << 20)


def collect(
    kinds: Mapping[str, Callable[[], Iterable[Candidate]]],
) -> tuple[list[Candidate], dict[str, str]]:
    """Other programs' candidates, and for each program that is not here, or computes something else, the reason."""
    found: list[Candidate] = []
    missing: dict[str, str] = {}
    for name, make in kinds.items():
        try:
            made = list(make())
            for one in made:
                one.error()
            found += made
        except Exception as error:  # whatever other programs raise, the rest is timed
            missing[name] = (str(error) or type(error).__name__).splitlines()[0][:200]
    return found, missing


def copies_of(nbytes: int) -> int:
    """How many copies of a weight are twice the last-level cache together; 2..1024, so the smallest are not cold."""
    return min(max(2, -(-2 * cache_bytes() // nbytes)), 1024)


def reader(nbytes: int = GIB // 4) -> Candidate:
    """Reads memory and computes nothing to speak of: its rate is the bandwidth. QbenchError without the C library."""
    library = cpu.library()
    memory = torch.empty(nbytes, dtype=torch.uint8)
    library.bcq_prefer_huge_pages(memory.data_ptr(), nbytes)
    memory.fill_(1)
    done = torch.ones(1, dtype=torch.float64)

    def run(copy: int) -> Tensor:
        library.bcq_read(memory.data_ptr(), nbytes, cpu.best_isa(), torch.get_num_threads())
        return done

    return Candidate("read", 8, nbytes, 1, run, done, 0.0)


def multiplier(dtype: torch.dtype, order: int = 1024) -> Candidate:
    """torch's product of two square matrices that the cache holds: its rate is the matrix rate."""
    x, weight = (
        torch.randn(order, order, generator=torch.Generator().manual_seed(i)).to(dtype)
        for i in (1, 2)
    )
    name, limit = ("multiply fp32", 1e-5) if dtype == torch.float32 else ("multiply bf16", 1e-2)
    expected = x.double() @ weight.double()
    return Candidate(name, 0, weight.nbytes, 1, lambda i: x @ weight, expected, limit, 2 * order**3)


def probes() -> list[Candidate]:
    """What the machine can do, to be timed among the candidates: reading memory, and matrix products."""
    return [reader(), multiplier(torch.bfloat16), multiplier(torch.float32)]


def dense(weight: Tensor, x: Tensor, dtype: torch.dtype) -> Candidate:
    """torch's own product in this dtype; weight (out, in) float32, x (rows, in)."""
    stored, given = weight.to(dtype), x.to(dtype)
    expected = given.double() @ stored.double().T
    weights = [stored] + [stored.clone() for _ in range(copies_of(stored.nbytes) - 1)]
    limit, name = (1e-5, "dense fp32") if dtype == torch.float32 else (1e-2, "dense bf16")
    bits = 8.0 * stored.element_size()
    run = lambda i: torch.nn.functional.linear(given, weights[i])  # noqa: E731
    return Candidate(name, bits, stored.nbytes, len(weights), run, expected, limit)


def table(weight: Binary | Uniform, x: Tensor, mode: int) -> Candidate:
    """The product by `qbench.kernels.cpu.products`, in the dtype of x, as the layer computes it for so many rows."""
    packed = cpu.Derived(weight)
    weights = [packed] + [cpu.Derived(weight) for _ in range(copies_of(packed.memory.nbytes) - 1)]
    small = packed.by_tables(x)
    label = f"{weight.format} {('exact', 'fast')[mode]} {weight.bits}b"
    rounded = weight.dequantize() if small else weight.dequantize().to(x.dtype)
    limits = {torch.bfloat16: 1e-2, torch.float32: 1e-5 if mode == cpu.EXACT or not small else 5e-3}
    bits = 8 * packed.memory.nbytes / weight.shape[0] / weight.shape[1]
    name = f"{label} {'bf16' if x.dtype == torch.bfloat16 else 'fp32'}"
    expected = x.double() @ rounded.double().T
    run = lambda i: weights[i].linear(x, None, mode)  # noqa: E731
    return Candidate(name, bits, packed.memory.nbytes, len(weights), run, expected, limits[x.dtype])


def random_binary(shape: Shape, bits: int, group_size: int, seed: int = 0) -> Binary:
    """A binary-coded weight of random codes with a shift, as alternating coding stores them: float16 scales."""
    generator = torch.Generator().manual_seed(seed)
    groups = shape.columns // group_size
    planes = torch.randint(
        0, 256, (bits, shape.out, shape.columns // 8), generator=generator, dtype=torch.uint8
    )
    alpha = (
        (torch.rand(shape.out, groups, bits, generator=generator) + 0.1)
        .div_(shape.columns**0.5)
        .half()
    )
    shift = torch.randn(shape.out, groups, generator=generator).div_(shape.columns**0.5).half()
    return Binary(planes, alpha, shift, shape.columns, group_size)


def random_uniform(shape: Shape, bits: int, group_size: int, seed: int = 0) -> Uniform:
    """A uniform weight of random codes with packed zero points, float16 scales."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(
        0, 2**bits, (shape.out, shape.columns), generator=generator, dtype=torch.uint8
    )
    scale = (
        (torch.rand(shape.out, shape.columns // group_size, generator=generator) + 0.1)
        .div_(shape.columns)
        .half()
    )
    zero = torch.randint(0, 2**bits, scale.shape, generator=generator, dtype=torch.uint8)
    return Uniform.from_codes(codes, scale, zero, bits)


MAKERS: Mapping[str, Callable[[Shape, int, int], Binary | Uniform]]
MAKERS = {"binary": random_binary, "uniform": random_uniform}


def candidates(
    shape: Shape, bits: Iterable[int], group_size: int, formats: Sequence[str] = ("binary",)
) -> list[Candidate]:
    """Dense products in both dtypes, and ours in both modes, for every width; the peers are in `qbench.latency.peers`."""
    x = torch.randn(shape.rows, shape.columns, generator=torch.Generator().manual_seed(1))
    plain = torch.randn(shape.out, shape.columns, generator=torch.Generator().manual_seed(2))
    found = [dense(plain, x, torch.float32), dense(plain, x, torch.bfloat16)]
    for width in bits:
        for kind in formats:
            weight = MAKERS[kind](shape, width, group_size)
            found += [
                table(weight, x, cpu.EXACT),
                table(weight, x, cpu.FAST),
                table(weight, x.bfloat16(), cpu.EXACT),
            ]
    return found


def wall_clock(candidate: Candidate) -> Callable[[int], float]:
    """Seconds of the product with the i-th copy, by the processor's clock."""

    def elapsed(copy: int) -> float:
        started = time.perf_counter()
        candidate.run(copy)
        return time.perf_counter() - started

    return elapsed


def time_interleaved(
    shape: Shape,
    found: Sequence[Candidate],
    rounds: int,
    burst: int = 4,
    clock: Clock = wall_clock,
    device: str = "",
) -> list[Row]:
    """Check every candidate; then each round runs it once untimed and `burst` times timed, on another copy each."""
    errors = {one.name: one.error() for one in found}
    clocks = {one.name: clock(one) for one in found}
    times: Mapping[str, list[float]] = {one.name: [] for one in found}
    for turn in range(rounds):
        for one in found:
            copies = [(turn * (burst + 1) + i) % one.copies for i in range(burst + 1)]
            times[one.name] += [clocks[one.name](copy) for copy in copies][1:]
    rows = []
    for one in found:
        facts = (
            one.name,
            one.bits,
            one.nbytes,
            one.operations or 2 * math.prod(shape),
            errors[one.name],
        )
        rows.append(
            Row(
                shape,
                device or f"{torch.get_num_threads()} threads",
                *facts,
                tuple(times[one.name]),
            )
        )
    return rows
