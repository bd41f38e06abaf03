"""The latency of packed models in tables: columns for people, and figures for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from qbench.records import Record


def columns(records: Sequence[Record]) -> list[str]:
    """Titles of the columns that `values` fills; none where no record has a latency."""
    timed = timed_rows(records)
    if not timed:
        return []
    titles = ["on disk MB"]
    for rows in timed:
        titles += [f"batch {rows} ms", f"batch {rows} x dense"]
    return [*titles, "tokens/s", "tokens/s x dense", "in memory MB"]


def values(record: Record, timed: Sequence[int]) -> list[float | None]:
    """What stands in these columns for one record, None where it is not known.

    timed: as `timed_rows` gives them; none where no record has a latency.
    """
    if not timed:
        return []
    disk = None if record.bytes_on_disk is None else record.bytes_on_disk / 1e6
    entries: list[float | None] = [disk]
    latency = record.latency
    for rows in timed:
        times = latency.milliseconds(rows) if latency else None
        entries += [None, None] if times is None else [times[0], over(times[1], times[0])]
    if latency is None or latency.decoding is None:
        return [*entries, None, None, None]
    rates = latency.decoding
    rate = rates.packed[0]
    return [*entries, rate, over(rate, rates.dense[0]), rates.packed_peak_bytes / 1e6]


def places(records: Sequence[Record]) -> list[str]:
    """Where latencies were measured; times of different places do not compare."""
    return list(dict.fromkeys(record.latency.place for record in records if record.latency))


class Figure(NamedTuple):
    """One figure of a latency, with its unit; `better` is `higher` or `lower`."""

    metric: str
    value: float
    unit: str
    better: str


def figures(record: Record) -> list[Figure]:
    """Everything that is known of a record's latency, for programs."""
    latency = record.latency
    if latency is None:
        return []
    entries: list[Figure] = []
    for rows in latency.rows:
        times = latency.milliseconds(rows)
        if times is not None:
            entries += [
                Figure(f"batch_{rows}_ms", times[0], "ms", "lower"),
                *_speedup(f"batch_{rows}", times[1], times[0]),
            ]
    rates = latency.decoding
    if rates is not None:
        entries += [
            _rate("decode", rates.packed[0]),
            *_speedup("decode", rates.packed[0], rates.dense[0]),
            _rate("prefill", rates.packed_prefill[0]),
            *_speedup("prefill", rates.packed_prefill[0], rates.dense_prefill[0]),
            _bytes("peak_bytes", rates.packed_peak_bytes),
            _bytes("dense_peak_bytes", rates.dense_peak_bytes),
        ]
    if record.bytes_on_disk is not None:
        entries.append(_bytes("bytes_on_disk", record.bytes_on_disk))
    return entries


def _rate(what: str, value: float) -> Figure:
    return Figure(f"{what}_tokens_per_second", value, "tokens per second", "higher")


def _speedup(what: str, value: float, dense: float) -> list[Figure]:
    ratio = over(value, dense)
    return [] if ratio is None else [Figure(f"{what}_speedup", ratio, "times dense", "higher")]


def over(value: float, other: float) -> float | None:
    """None where the other took no time that a clock could tell."""
    return value / other if other > 0 else None


def _bytes(metric: str, value: int) -> Figure:
    return Figure(metric, float(value), "bytes", "lower")


def missing(records: Sequence[Record]) -> list[tuple[Record, str]]:
    """The records of which some latency was not measured, each with the reason in one line."""
    entries = []
    for record in records:
        if record.latency and record.latency.reason:
            entries.append((record, " ".join(record.latency.reason.split())))
    return entries


def caption(records: Sequence[Record]) -> list[str]:
    """A paragraph on what the columns mean and where they were measured; none without them."""
    measured_on = places(records)
    if not measured_on:
        return []
    return [
        "Latency: milliseconds for the products of all quantized layers at a batch of so many "
        "rows, tokens written per second by the packed model at a batch of one, and the memory "
        "that this takes; x dense: how many times as fast as the unpacked model in turns with it. "
        f"Measured on {'; '.join(measured_on)}."
    ]


def timed_rows(records: Sequence[Record]) -> list[int]:
    """Every number of rows of x that some record has timed, ascending."""
    return sorted({rows for record in records if record.latency for rows in record.latency.rows})
