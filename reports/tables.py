"""The wide table for people, one row per cell: as Markdown, and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qbench.comparison.pairs import TIMES, Pairs, pairs_of
from qbench.comparison.ranks import EQUAL_BITS, winners
from qbench.files.atomic import write_text
from qbench.outside_text import markdown as escaped
from qbench.outside_text import markdown_table
from qbench.records import Record, labels
from qbench.reports import latencies
from qbench.reports.cautions import summary
from qbench.reports.cell_names import format_of, names, ordered, shared_parameters
from qbench.reports.doubts import doubts
from qbench.reports.headline import MINI_NOTICE, Headline, headlines, in_words, require
from qbench.reports.noise import noise_lines
from qbench.reports.numbers import number, score_text
from qbench.reports.repeats import without_repeats

CAPTION = (
    "Beside a score stands its difference from the unquantized model on the same items, with a "
    f"95 % interval: a factor ({TIMES}) of perplexities, points of percent, or the metric's unit. "
    "It is over clusters, such as articles, and does not hold what another calibration sample "
    "or seed would change. Divergences are such differences already: their interval is their own. "
    "Without items of both, a score has one standard error behind ±, or its interval where it is a "
    "share of right answers or of a few clusters. Bold: better, by the interval of the paired "
    "difference, than every cell of the same model that was judged alike (by the same code and "
    "packages, in one dtype and batch size, on one kind of device, of one revision) and has as "
    f"many measured bits per weight (within {EQUAL_BITS}) or fewer, where there is one of as many; "
    "draws of the cell itself, which differ in their seed alone, are no rivals, and of a cell "
    "without items or one that was judged otherwise the score alone must be worse. Between "
    "methods of several draws, or of several and one that draws nothing, bold and ranks are by all "
    "draws together, whose interval holds what another draw would change, and have one verdict for "
    "each method; that of a single draw does not hold it. (?): the score may say nothing; why "
    "stands below."
)
DOUBT = " (?)"  # behind a score that may say nothing; the reason stands below the table


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """`leaderboard.md`, the wide table as Markdown."""
    return [write_text(folder / "leaderboard.md", markdown(records, folder))]


@dataclass(frozen=True)
class Entry:
    """One field of the wide table.

    text: what people read. value: what it sorts by, None where there is nothing. best: whether it
    is better than its rivals at equal bits. below: the difference from the unquantized model, or of
    what is one itself the interval.
    """

    text: str
    value: float | str | None = None
    best: bool = False
    below: str = ""

    @property
    def whole(self) -> str:
        """Both on one line."""
        if self.below.startswith("["):
            return f"{self.text} {self.below}"
        return f"{self.text} ({self.below})" if self.below else self.text


def grid(
    records: Sequence[Record], folder: Path | None = None
) -> tuple[list[str], list[list[Entry]]]:
    """The wide table with everything a page needs: its columns, and one row of entries per cell.

    folder: of the run, where the items lie; without them there are no differences and no winners.
    """
    records = ordered(records)
    pairs = pairs_of(records, folder)
    scores = headlines(records)
    several_models = len({record.cell.model for record in records}) > 1
    trained = any(block_loss(record, "final") for record in records)

    columns = ["model"] if several_models else []
    columns += ["method", "bits", "group", "format", "bits/weight (measured)"]
    columns += [headline.title for headline in scores]
    columns += latencies.columns(records)
    several_places = len(latencies.places(records)) > 1
    if several_places:
        columns.append("timed on")
    columns += ["quantize seconds", "peak memory MB"]
    if trained:
        columns += ["block loss at the start", "block loss"]

    timed = latencies.timed_rows(records)
    called = names(records, group=False)
    best = {}
    for headline in scores:
        asked_so = [record for record in records if headline.of(record)]
        best[headline] = winners(asked_so, headline.key, pairs)
    rows = []
    for record in records:
        row = [Entry(record.cell.model, record.cell.model)] if several_models else []
        row += identity(record, called[record.id])
        for headline in scores:
            row.append(_score_entry(record, headline, record.id in best[headline], pairs))
        row += [_number_entry(value, ".3g") for value in latencies.values(record, timed)]
        if several_places:
            place = record.latency.place if record.latency else ""
            row.append(Entry(place, place))
        row += _cost(record)
        if trained:
            row += _losses(record)
        rows.append(row)
    return columns, rows


def block_loss(record: Record, key: str) -> float | None:
    """Geometric mean over the blocks of a loss that a method which trains has logged, or None.

    key: `initial` or `final`.
    """
    logs = []
    for entry in record.log.values():
        loss = entry.get(key) if isinstance(entry, dict) else None
        if isinstance(loss, float) and loss > 0:
            logs.append(math.log(loss))
    return math.exp(sum(logs) / len(logs)) if logs else None


def identity(record: Record, name: str) -> list[Entry]:
    """Name, bits, group size, format and measured bits per weight."""
    label = name if record.status == "ok" else f"{name} ({record.status})"
    bits = group = Entry("")
    scheme = record.cell.scheme
    if scheme:
        bits = Entry(str(scheme.width), scheme.width)
        # one group per channel sorts behind all numbers
        group = Entry(str(scheme.group_size or "channel"), scheme.group_size or 1 << 30)
    measured = record.bits_per_weight.get("total")
    form = format_of(record)
    return [Entry(label, name), bits, group, Entry(form, form), _number_entry(measured, ".2f")]


def _score_entry(record: Record, headline: Headline, is_best: bool, pairs: Pairs) -> Entry:
    score = headline.of(record)
    if score is None:
        return Entry("", best=is_best)
    contrast = pairs.from_unquantized(record, headline.key)
    below = ""
    if contrast is None:
        text = score_text(score)
    elif headline.is_relative:
        text, _, below = score_text(score, contrast).partition(" ")
    else:
        text, below = number(score.value, None, headline.unit), contrast.text
    if score.suspicion:
        text += DOUBT
    return Entry(text, score.value, is_best, below)


def _cost(record: Record) -> list[Entry]:
    """Seconds, and megabytes at the peak; what they sort by is in bytes."""
    peak = record.quantize_peak_bytes
    peak_text = "" if peak is None else f"{peak / 1e6:.0f}"
    return [_number_entry(record.quantize_seconds, ".1f"), Entry(peak_text, peak)]


def _losses(record: Record) -> list[Entry]:
    return [_number_entry(block_loss(record, key), ".4g") for key in ("initial", "final")]


def _number_entry(value: float | None, form: str) -> Entry:
    """form: of the text, such as `.2f`."""
    return Entry("" if value is None else f"{value:{form}}", value)


def failures(records: Sequence[Record]) -> list[tuple[Record, str]]:
    """The cells that have no scores, each with its reason in one line."""
    lost = []
    for record in ordered(records):
        if record.status != "ok":
            reason = record.reason or "no reason was recorded"
            lost.append((record, " ".join(reason.split())))
    return lost


def captions(records: Sequence[Record]) -> list[str]:
    """What a reader of the wide table must know, a paragraph each."""
    parameters = shared_parameters(records)
    told = [parameters] if parameters else []
    return [CAPTION, *noise_lines(records), *told, *latencies.caption(records)]


def markdown(records: Sequence[Record], folder: Path | None = None) -> str:
    """The wide table, the best values bold, and what failed and why. DataError without records."""
    require(records)
    records = without_repeats(records)
    pairs = pairs_of(records, folder)
    parts = ["# qbench leaderboard"]
    if has_mini_tasks(records):
        parts.append(f"Note: {MINI_NOTICE}.")
    parts += [_markdown_table(records, folder), *map(escaped, captions(records))]
    told = labels(record.cell for record in records)
    items = [_item(record, told, f" ({record.status})", why) for record, why in failures(records)]
    if items:
        parts += ["## Cells without scores", "\n".join(items)]
    items = [f"- {escaped(cells)}: {escaped(text)}" for cells, text in doubts(records)]
    if items:
        parts += ["## Scores that may say nothing", "\n".join(items)]
    items = [_item(record, told, "", why) for record, why in latencies.missing(ordered(records))]
    if items:
        parts += ["## Latencies that were not measured", "\n".join(items)]
    items = [f"- {escaped(cells)}: {escaped(text)}" for cells, text in summary(records, pairs)]
    if items:
        parts += ["## What may be wrong with the evaluation", "\n".join(items)]
    parts += ["## How the tasks were asked", "\n".join(_asked(records))]
    return "\n\n".join(parts) + "\n"


def _asked(records: Sequence[Record]) -> list[str]:
    """A line for each way in which a task was asked, and for each run's protocol."""
    lines = []
    for record in ordered(records):
        for spec in record.cell.tasks:
            lines.append(f"- {escaped(spec.name)}: {escaped(in_words(spec))}")
        if record.protocol:
            name, digest = record.protocol.get("name"), record.protocol.get("hash")
            lines.append(f"- protocol {escaped(f'{name}: {digest}')}")
    return list(dict.fromkeys(lines))


def _item(record: Record, told: Mapping[str, str], status: str, reason: str) -> str:
    cell = f"{record.cell.model} {told[record.cell.id]}"
    return f"- {escaped(cell)}{status}: {escaped(reason)}"


def has_mini_tasks(records: Sequence[Record]) -> bool:
    """Whether any score is of the stand-ins for data, whose names say so."""
    return any(headline.task.startswith("mini-") for headline in headlines(records))


def _markdown_table(records: Sequence[Record], folder: Path | None) -> str:
    headings, rows, words = in_markup(records, folder, escaped, bold=lambda text: f"**{text}**")
    return markdown_table(headings, rows, left=words)


def in_markup(
    records: Sequence[Record],
    folder: Path | None,
    escape: Callable[[str], str],
    bold: Callable[[str], str],
) -> tuple[list[str], list[list[str]], int]:
    """The wide table in a markup: its headings, its rows, and how many columns hold words.

    escape: makes a text mean itself there. bold: makes an escaped text bold.
    """
    columns, entries = grid(records, folder)
    short = {headline.title: headline.heading for headline in headlines(records)}
    rows = []
    for row in entries:
        fields = []
        for entry in row:
            text = escape(entry.whole)
            fields.append(bold(text) if entry.best else text)
        rows.append(fields)
    headings = [escape(short.get(column, column)) for column in columns]
    return headings, rows, columns.index("method") + 1
