"""What a product with a quantized weight costs: cold, interleaved, checked, a share of memory.

cold         every candidate has copies of its weight, more bytes than the last-level cache, and
             takes them in turn
interleaved  each round runs every candidate, so that a slow minute of the machine is everybody's:
             once untimed, then some copies in a row, as the layers of a model follow each other
checked      a candidate is held against float64 before it is timed
share        bytes of the packed weight per second, in parts of the read bandwidth measured in the
             same rounds

Nothing of torch's global state is changed but the number of threads, inside `threads`.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from qbench.errors import QbenchError
from qbench.records import threads_in_words


class Shape(NamedTuple):
    """A weight (out, columns) and the number of rows of x that it is multiplied with."""

    out: int
    columns: int
    rows: int = 1

    @property
    def weight(self) -> tuple[int, int]:
        """(out, in)."""
        return self.out, self.columns

    @property
    def least_bytes(self) -> int:
        """What timing its products holds at once, beside the copies of the weights.

        x is there in float32 and bfloat16, and in float64 for the expected products, which are kept
        in float64 for both dtypes; so is the weight, beside its float32 form.
        """
        return (
            self.rows * self.columns * (4 + 2 + 8)
            + self.out * self.columns * (4 + 8)
            + self.rows * self.out * (8 + 8)
        )

    def __str__(self) -> str:
        return f"{self.out}x{self.columns}, batch {self.rows}"


@dataclass(frozen=True)
class Candidate:
    """One way to compute a product.

    name: of its row. bits: per weight, as it is read. nbytes: of the weight, as it is read. copies:
    of the weight. run: index of a copy -> (rows, out). expected (rows, out) float64: the product.
    limit: of the relative error in norm. size: the norm that the product has where nothing cancels,
    which the error may be held against: of few outputs little may be left. operations: additions
    and multiplications that the product stands for; 0: two for each weight and row. scope: in which
    a GPU's products are captured.
    """

    name: str
    bits: float
    nbytes: int
    copies: int
    run: Callable[[int], Tensor]
    expected: Tensor
    limit: float
    operations: int = 0
    scope: Callable[[], AbstractContextManager[None]] = nullcontext
    size: float = 0.0

    def error(self) -> float:
        """The relative error of the product in norm. QbenchError where it exceeds the limit."""
        difference = (self.run(0).double() - self.expected).norm()
        norm = self.expected.norm()
        relative = (difference / norm.clamp_min(self.size)).item()
        if not relative <= self.limit:
            raise QbenchError(
                f"{self.name} is wrong: relative error {relative:.4g}, at most {self.limit:.4g} "
                f"was expected"
            )
        return (difference / norm).item()


# candidate -> a function that takes the index of a copy, and returns the seconds of its product
Clock = Callable[[Candidate], Callable[[int], float]]


@dataclass(frozen=True)
class Row:
    """One candidate's times in seconds, in the order of the rounds.

    device: name of the GPU, or such as `2 threads`. The other fields are those of `Candidate`;
    error: as measured.
    """

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
        """The tenth and the ninetieth percentile, in seconds."""
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
    """Size of the processor's last-level cache; 64 MiB where the system does not tell."""
    largest = 0
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        size = re.match(r"(\d+)([KM])", file.read_text())
        if size is not None:
            unit = {"K": 1 << 10, "M": 1 << 20}[size[2]]
            largest = max(largest, int(size[1]) * unit)
    return largest or 64 << 20


def copies_of(nbytes: int, device: str = "cpu") -> int:
    """How many copies of a weight of so many bytes are more than a cache keeps.

    On the CPU twice the last-level cache, and 1024 at most, so that the smallest weights are not
    cold; on a GPU four times its L2 cache, and 64 at most. At least 2.
    """
    if device == "cuda":
        wanted = 4 * torch.cuda.get_device_properties(0).L2_cache_size
        most = 64
    else:
        wanted = 2 * cache_bytes()
        most = 1024
    return min(max(2, -(-wanted // nbytes)), most)


def collect(
    programs: Mapping[str, Callable[[], Iterable[Candidate]]],
) -> tuple[list[Candidate], dict[str, str]]:
    """Other programs' candidates.

    And for each program that is not here, or computes something else, the reason in one line.
    """
    candidates: list[Candidate] = []
    missing: dict[str, str] = {}
    for name, make in programs.items():
        try:
            theirs = list(make())
            for candidate in theirs:
                candidate.error()
            candidates += theirs
        except Exception as error:  # whatever other programs raise, the rest is timed
            missing[name] = (str(error) or type(error).__name__).splitlines()[0][:200]
    return candidates, missing


def wall_clock(candidate: Candidate) -> Callable[[int], float]:
    """Seconds of a product with one copy of the weight, by the processor's clock."""

    def elapsed(copy: int) -> float:
        started = time.perf_counter()
        candidate.run(copy)
        return time.perf_counter() - started

    return elapsed


def time_interleaved(
    shape: Shape,
    candidates: Sequence[Candidate],
    rounds: int,
    burst: int = 4,
    clock: Clock = wall_clock,
    device: str = "",
) -> list[Row]:
    """A row for every candidate, in their order.

    Each is checked; then each round runs it once untimed and `burst` times timed, every time on
    another copy. QbenchError where a product is wrong.
    """
    errors = [candidate.error() for candidate in candidates]
    clocks = [clock(candidate) for candidate in candidates]
    times: list[list[float]] = [[] for _ in candidates]
    for turn in range(rounds):
        for index, candidate in enumerate(candidates):
            first = turn * (burst + 1)
            clocks[index](first % candidate.copies)  # untimed
            for copy in range(first + 1, first + burst + 1):
                times[index].append(clocks[index](copy % candidate.copies))
    rows = []
    for index, candidate in enumerate(candidates):
        row = Row(
            shape,
            device or threads_in_words(torch.get_num_threads()),
            candidate.name,
            candidate.bits,
            candidate.nbytes,
            candidate.operations or 2 * math.prod(shape),
            errors[index],
            tuple(times[index]),
        )
        rows.append(row)
    return rows
