"""The costs of the cells of both sides: bits, bytes, seconds, memory, latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qbench.records import Record, Spread, threads_in_words
from qbench.stats.difference import mean_interval


@dataclass(frozen=True)
class Cost:
    """The cost of both sides, as means over draws.

    ratio: candidate over base (the geometric mean of several draws) with its 95 % interval over
    draws. A single draw has the spread of the recorded timings as its interval, if there is one,
    and else a point; so have draws that share one measurement of a side. None where a side costs
    nothing.
    """

    base: float
    candidate: float
    ratio: Spread | None


def costs(draws: Sequence[tuple[Record, Record]]) -> dict[str, Cost]:
    """What both sides cost, over the draws in which both were measured, times at one place."""
    by_name = {}
    once = _single(draws)
    for measure in MEASURES:
        alike = [measure.both(draw) for draw in draws if measure.at_one_place(draw)]
        known = [both for both in alike if both is not None]
        if known:
            by_name[measure.name] = _cost(known, once and not measure.counted)
    return by_name


def _single(draws: Sequence[tuple[Record, Record]]) -> bool:
    """Whether one record of a side stands in several draws, as of a method that draws nothing.

    Draws then share its error, of which their spread tells nothing.
    """
    sides = ({entry.id for entry, _ in draws}, {other.id for _, other in draws})
    return len(draws) > 1 and min(map(len, sides)) == 1


def measured_once(draws: Sequence[tuple[Record, Record]], known: Iterable[str]) -> list[str]:
    """A note on those of the known costs of which one measurement of a side stands in all draws."""
    names = [name for name in known if name not in COUNTED]
    if not names or not _single(draws):
        return []
    return [f"{', '.join(names)}: {ONCE}"]


def watched(draws: Sequence[tuple[Record, Record]], known: Iterable[str]) -> list[str]:
    """A note on the memory of a side that is a plug-in, where the other one is none."""
    sides = zip(*draws, strict=True)
    base, candidate = [any(record.quantize_watched for record in side) for side in sides]
    if "peak MB" not in known or base == candidate:
        return []
    name = "base" if base else "candidate"
    return [
        f"peak MB: of the {name} alone it holds copies that the watch on a plug-in makes to check "
        "its contract"
    ]


def elsewhere(draws: Sequence[tuple[Record, Record]]) -> list[str]:
    """A note on the costs that both sides have and `costs` leaves out, if there are any."""
    names = []
    for measure in MEASURES:
        apart = [draw for draw in draws if not measure.at_one_place(draw)]
        if any(measure.both(draw) for draw in apart):
            names.append(measure.name)
    if not names:
        return []
    return [f"{', '.join(names)}: measured on other hardware, threads or loops, and not compared"]


def other_machines(draws: Sequence[tuple[Record, Record]]) -> list[str]:
    """A note where the quantized models of both sides were computed on unlike machines."""
    for entry, other in draws:
        places = (machine(entry), machine(other))
        if None not in places and places[0] != places[1]:
            return [
                f"quantized on {places[0]}, and on {places[1]}: last digits differ, by which "
                "methods with feedback choose other codes, and scores move as with another draw"
            ]
    return []


def machine(record: Record) -> str | None:
    """The processor and threads, or the GPU, of a quantized cell; None where it is not known.

    On a processor also whether the loops of methods were computed in torch, and not in C.
    """
    hardware = record.environment.get("hardware")
    if not hardware or record.cell.scheme is None:
        return None
    if record.cell.device != "cpu":
        return str(hardware.get("gpu"))
    loops = " and loops in torch" if _loops_in_torch(record) else ""
    return f"{hardware.get('cpu')} with {threads_in_words(hardware.get('threads'))}{loops}"


def _loops_in_torch(record: Record) -> bool:
    return record.cell.device == "cpu" and record.environment.get("loops") == "torch"


def _cost(draws: Sequence[tuple[Spread, Spread]], once: bool) -> Cost:
    """once: whether one measurement of a side stands in all draws, so that there is no interval."""
    base = sum(entry[0] for entry, _ in draws) / len(draws)
    candidate = sum(other[0] for _, other in draws) / len(draws)
    if min(min(*entry, *other) for entry, other in draws) <= 0:
        return Cost(base, candidate, None)
    if len(draws) == 1:
        return Cost(base, candidate, _over(draws[0][1], draws[0][0]))
    logs = mean_interval([math.log(other[0] / entry[0]) for entry, other in draws])
    if once:
        return Cost(base, candidate, _point(math.exp(logs.value)))
    return Cost(base, candidate, (math.exp(logs.value), math.exp(logs.low), math.exp(logs.high)))


def _over(first: Spread, second: Spread) -> Spread:
    """The ratio of two medians; its ends add the spreads of both in squares, in logarithms."""
    value = first[0] / second[0]
    down = math.hypot(math.log(first[0] / first[1]), math.log(second[2] / second[0]))
    up = math.hypot(math.log(first[2] / first[0]), math.log(second[0] / second[1]))
    return value, value * math.exp(-down), value * math.exp(up)


def _point(value: float | None) -> Spread | None:
    return None if value is None else (value, value, value)


def _megabytes(value: float | None) -> Spread | None:
    return None if value is None else _point(value / 1e6)


def _products(record: Record) -> Spread | None:
    both = None if record.latency is None else record.latency.milliseconds(1)
    return None if both is None else _point(both[0])


def _products_over_dense(record: Record) -> Spread | None:
    """Of all layers, whose spreads add up as if all were slow at once."""
    products = record.latency.products if record.latency else ()
    timed = [product for product in products if product.rows == 1]
    packed, dense = [], []
    for end in range(3):
        packed.append(sum(product.layers * product.seconds[end] for product in timed))
        dense.append(sum(product.layers * product.dense[end] for product in timed))
    if not _products(record) or min(*packed, *dense) <= 0:
        return None
    return _over((packed[0], packed[1], packed[2]), (dense[0], dense[1], dense[2]))


def _decoding(record: Record) -> Spread | None:
    decoding = record.latency.decoding if record.latency else None
    return None if decoding is None else _point(decoding.packed[0])


def _decoding_over_dense(record: Record) -> Spread | None:
    decoding = record.latency.decoding if record.latency else None
    if decoding is None or min(*decoding.packed, *decoding.dense) <= 0:
        return None
    return _over(decoding.packed, decoding.dense)


def _timed_at(record: Record) -> object:
    return None if record.latency is None else record.latency.place


def _quantized_at(record: Record) -> object:
    hardware = record.environment.get("hardware", {})
    return [*(hardware.get(name) for name in ("cpu", "gpu", "threads")), _loops_in_torch(record)]


@dataclass(frozen=True)
class Measure:
    """What the cells of both sides cost.

    of: a record, None where it is not known. at: the place where it was measured, since elsewhere
    it is another one; None of what is the same everywhere. counted: and not measured, so that it is
    the same whenever it is counted again.
    """

    name: str
    of: Callable[[Record], Spread | None]
    at: Callable[[Record], object] | None = None
    counted: bool = False

    def both(self, draw: tuple[Record, Record]) -> tuple[Spread, Spread] | None:
        """The cost of both cells of a draw, None where one of them is not known."""
        base, candidate = map(self.of, draw)
        return None if base is None or candidate is None else (base, candidate)

    def at_one_place(self, draw: tuple[Record, Record]) -> bool:
        """Whether the two cells of a draw may be compared by it."""
        base, candidate = draw
        return self.at is None or self.at(base) == self.at(candidate)


# Packed and dense took turns, so their ratio has nothing of how fast the machine was in that hour.
MEASURES = (
    Measure(
        "bits per weight",
        lambda record: _point(record.bits_per_weight.get("total")),
        counted=True,
    ),
    Measure("MB on disk", lambda record: _megabytes(record.bytes_on_disk), counted=True),
    Measure("seconds to quantize", lambda record: _point(record.quantize_seconds), _quantized_at),
    Measure("peak MB", lambda record: _megabytes(record.quantize_peak_bytes)),
    Measure("ms of products, batch 1", _products, _timed_at),
    Measure("products over dense, batch 1", _products_over_dense),
    Measure("tokens per second", _decoding, _timed_at),
    Measure("tokens per second over dense", _decoding_over_dense),
)
COUNTED = [measure.name for measure in MEASURES if measure.counted]
ONCE = (
    "no interval, since a side that draws nothing was measured once, whose noise is in every draw"
)
