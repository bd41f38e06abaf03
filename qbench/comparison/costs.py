"""What the cells of both sides cost beside their scores: bits, bytes, seconds, memory, latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qbench.records import Record


def costs(draws: Sequence[tuple[Record, Record]]) -> dict[str, tuple[float, float]]:
    """What both sides cost, means over draws, where both were measured."""
    by_name = {}
    for name, of in COSTS.items():
        both = []
        for side in (0, 1):
            known = [of(pair[side]) for pair in draws]
            numbers = [value for value in known if value is not None]
            if numbers:
                both.append(sum(numbers) / len(numbers))
        if len(both) == 2:
            by_name[name] = (both[0], both[1])
    return by_name


def _decoding(record: Record) -> float | None:
    latency = record.latency
    return None if latency is None or latency.decoding is None else latency.decoding.packed[0]


def _products(record: Record) -> float | None:
    both = None if record.latency is None else record.latency.milliseconds(1)
    return None if both is None else both[0]


def _megabytes(value: float | None) -> float | None:
    return None if value is None else value / 1e6


COSTS: dict[str, Callable[[Record], float | None]] = {
    "bits per weight": lambda record: record.bits_per_weight.get("total"),
    "MB on disk": lambda record: _megabytes(record.bytes_on_disk),
    "seconds to quantize": lambda record: record.quantize_seconds,
    "peak MB": lambda record: _megabytes(record.quantize_peak_bytes),
    "ms of products, batch 1": _products,
    "tokens per second": _decoding,
}
