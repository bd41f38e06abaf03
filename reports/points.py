"""The points of a panel, scores against bits, size or latency, and the scales they need."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qbench.comparison.judging import judged_by, protocol
from qbench.comparison.pairs import Contrast, Pairs, is_unquantized
from qbench.records import Record, Score
from qbench.reports.cell_names import names
from qbench.reports.headline import Headline
from qbench.reports.latencies import over
from qbench.reports.numbers import answer_interval, number, score_text, student_interval

# How much worse than the best one a point may be and still be drawn in its place: times for
# perplexity, nats for the others. Worse ones are drawn at the edge.
COLLAPSE = {"perplexity": 30.0, "nats": 2.0}


@dataclass(frozen=True)
class Cost:
    """What a score is drawn against.

    label: of the axis, with its unit. short: in a title. of: the value of a cell, or None.
    """

    label: str
    short: str
    of: Callable[[Record], float | None]


def _measured_bits(record: Record) -> float | None:
    # The unquantized model has no place among quantized ones: it is a line.
    return record.bits_per_weight.get("total")


def _megabytes(record: Record) -> float | None:
    return None if record.bytes_on_disk is None else record.bytes_on_disk / 1e6


def _times_dense(record: Record) -> float | None:
    # Packed and dense take turns: milliseconds of cells timed minutes apart tell the machine's
    # other work, too.
    timed = record.latency.milliseconds(1) if record.latency is not None else None
    return None if timed is None else over(*timed)


BITS = Cost("measured bits per weight", "measured bits per weight", _measured_bits)
SIZE = Cost("size on disk in MB", "size on disk", _megabytes)
LATENCY = Cost("time of all quantized layers for one token, dense = 1", "latency", _times_dense)
COSTS = (BITS, SIZE, LATENCY)


@dataclass(frozen=True)
class Point:
    """A cell in a panel.

    x: what it costs, such as measured bits per weight. y: the score, percent for a share. low,
    high: the ends of its bar, 95 % intervals. paired: whether the bar is that of the difference
    from the unquantized model on the same items, drawn around y; else it is the score's own. bits:
    the nominal ones, None where it has none. baseline: whether it is the unquantized model. cell:
    the id. judged: as of `judged_by`, and where it was timed. text: what it is, in words.
    """

    x: float
    y: float
    low: float
    high: float
    paired: bool
    bits: float | None
    baseline: bool
    cell: str
    judged: tuple[object, ...]
    text: str


@dataclass(frozen=True)
class Scale:
    """The vertical axis of a panel.

    log: whether it is logarithmic. worse: +1 where worse scores are higher on the page, else -1.
    edge: where the panel ends for points that collapsed, None where none did.
    """

    log: bool
    worse: int
    edge: float | None

    def beyond(self, y: float) -> bool:
        """Whether a score is worse than the edge."""
        return self.edge is not None and y * self.worse > self.edge * self.worse

    def place(self, y: float) -> float:
        """Where a score is drawn: at the edge, if it is beyond."""
        if self.edge is not None and self.beyond(y):
            return self.edge
        return y

    def bar(self, point: Point) -> tuple[float, float]:
        """The lower and upper half of a point's bar; none at the edge.

        On a logarithmic axis the lower one ends above 0.
        """
        if self.beyond(point.y):
            return 0.0, 0.0
        lower = max(0.0, point.y - point.low)
        if self.log:
            lower = min(lower, abs(point.y) * 0.999)
        return lower, max(0.0, point.high - point.y)


def unbroken(label: str) -> str:
    """With spaces at which no line ends."""
    return label.replace(" ", "\u00a0")


def _is_log(headline: Headline) -> bool:
    return headline.nature == "perplexity" or headline.is_divergence


def points_by_line(
    mine: Sequence[Record],
    headline: Headline,
    notes: list[str],
    pairs: Pairs,
    cost: Cost,
) -> dict[str, list[Point]]:
    """The points of each line by its name, in the order of the records.

    mine: the records of one model. notes: gets a sentence for every score that cannot be drawn.
    pairs: of the run, which have the differences from the unquantized model. A cell without the
    cost has no point.
    """
    scored = []
    for record in mine:
        score = headline.of(record)
        if score:
            scored.append((record, score))
    # Scores of different protocols are not comparable: those of the most common one are drawn.
    protocols = Counter(protocol(record, headline.task) for record, _ in scored)
    usual = [spec for spec, _ in protocols.most_common(1)]
    called = names(mine)
    lines: dict[str, list[Point]] = {}
    for record, score in scored:
        if protocol(record, headline.task) not in usual:
            label = unbroken(record.cell.label)
            notes.append(f"Not drawn, since {headline.task} was run otherwise: {label}.")
            continue
        if is_unquantized(record) and headline.is_divergence:
            # The divergence of the unquantized model from itself is rounding, and would stretch
            # the axis.
            continue
        contrast = pairs.from_unquantized(record, headline.key)
        point = _point(record, score, contrast, headline, notes, cost)
        if point is not None:
            lines.setdefault(called[record.id], []).append(point)
    return lines


def _point(
    record: Record,
    score: Score,
    contrast: Contrast | None,
    headline: Headline,
    notes: list[str],
    cost: Cost,
) -> Point | None:
    """None where the score cannot be drawn, which a note says, or where it has no such cost."""
    percent = 100.0 if headline.unit == "%" else 1.0
    x = cost.of(record)
    if is_unquantized(record):
        x = 0.0  # a line across the panel, which has no place in bits
    if x is None:
        return None
    y = score.value * percent
    if not math.isfinite(y) or (_is_log(headline) and y <= 0):
        label = unbroken(record.cell.label)
        notes.append(f"Not drawn, {headline.metric} {y:g}: {label}.")
        return None
    bits: float | None = None
    if record.cell.scheme:
        bits = record.cell.scheme.width
    low, high = _ends(score, contrast, percent)
    if headline.is_relative or contrast is None:
        shown = score_text(score, contrast)
    else:
        shown = f"{number(score.value, None, headline.unit)}, {contrast.text} from the unquantized,"
    text = f"{record.cell.label}: {headline.title} {shown} at {x:.4g} ({cost.label})"
    paired = contrast is not None
    judged = judged_by(record, headline.task)
    if cost is LATENCY and record.latency:
        judged = (*judged, record.latency.place)
    return Point(x, y, low, high, paired, bits, is_unquantized(record), record.id, judged, text)


def _ends(score: Score, contrast: Contrast | None, percent: float) -> tuple[float, float]:
    """Of a bar: the 95 % interval of the paired difference laid around the score, else its own.

    Where there is no finite one, both are the score. percent: 100 for a share, else 1.
    """
    y = percent * score.value
    own = answer_interval(score)
    if contrast is not None:
        value, low, high = contrast.figures
        if contrast.ratio:
            ends = (y * low / value, y * high / value)
        else:
            ends = (y + low - value, y + high - value)
    elif own is not None:
        ends = (percent * own[0], percent * own[1])
    else:
        low, high = student_interval(score)
        ends = (percent * low, percent * high)
    if not all(map(math.isfinite, ends)):
        return y, y
    if percent != 1.0:
        return max(0.0, ends[0]), min(100.0, ends[1])
    return ends


def frontier(points: Sequence[Point], worse: int) -> list[Point]:
    """The points that no other one beats at the same cost or less (Pareto), by cost.

    worse: +1 where a smaller y is better, else -1.
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, worse * point.y)):
        if not best or worse * point.y < worse * best[-1].y:
            best.append(point)
    return best


def scale_of(headline: Headline, points: Sequence[Point]) -> Scale:
    """The scale of a panel with these points.

    It has an edge where some of them collapsed, so that the others can still be told apart.
    """
    worse = -1 if headline.higher_is_better else 1
    scale = Scale(_is_log(headline), worse, edge=None)
    kind = headline.unit.split()[0] if headline.unit else headline.nature
    room = None if headline.is_relative else COLLAPSE.get(kind)
    if room is None or not points:
        return scale
    best = min((point.y for point in points), key=lambda y: y * worse)
    edge = best + worse * room
    if headline.nature == "perplexity":
        edge = best * room
    limited = Scale(scale.log, worse, edge)
    if any(limited.beyond(point.y) for point in points):
        return limited
    return scale
