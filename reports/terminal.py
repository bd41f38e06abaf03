"""The table of a terminal: as many scores of each cell as its width has room for."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from qbench.comparison.pairs import TIMES, Pairs, pairs_of
from qbench.outside_text import printable
from qbench.records import Decoding, Record, labels
from qbench.reports import latencies
from qbench.reports.cautions import summary
from qbench.reports.cell_names import names, ordered, shared_parameters
from qbench.reports.doubts import doubts
from qbench.reports.headline import MINI_NOTICE, Headline, headlines, require
from qbench.reports.noise import noise_lines
from qbench.reports.numbers import number, score_text
from qbench.reports.repeats import without_repeats
from qbench.reports.tables import failures, has_mini_tasks, identity

SCREEN_NOTE = (
    "After a score: its difference from the unquantized model on the same items, and half of the "
    f"95 % interval, or the whole in brackets; {TIMES} is the factor of perplexities. Directly at "
    "a score: one standard error, or in brackets the 95 % interval."
)
SCREEN_WIDTH = 100  # characters


def screen(records: Sequence[Record], console: Console, folder: Path | None = None) -> None:
    """A table per model in at most SCREEN_WIDTH columns, and below it the cells without scores.

    folder: of the run; with its items, every score has its difference from the unquantized model.
    """
    require(records)
    pairs = pairs_of(records, folder)
    width = min(SCREEN_WIDTH, console.width)
    records = ordered(without_repeats(records))
    told = labels(record.cell for record in records)
    for model in dict.fromkeys(record.cell.model for record in records):
        mine = [record for record in records if record.cell.model == model]
        looked_at = {(headline.task, headline.metric) for headline in headlines(mine)}
        if any(record.status == "ok" for record in mine):
            table, left_out = _fitting_table(mine, console, width, pairs)
            console.print(table, width=width)
            if left_out:
                titles = ", ".join(headline.title for headline in left_out)
                line = printable(f"no room for {titles}; the files of the report have all scores")
                console.print(Text(line), width=width)
        for record, reason in failures(mine):
            line = printable(f"{record.status}  {told[record.cell.id]}  {reason}")
            console.print(Text(line), width=width)
        for cells, reason in doubts(mine, looked_at):
            line = printable(f"doubtful  {cells.removeprefix(f'{model} ')}  {reason}")
            console.print(Text(line), width=width)
    for cells, text in summary(records, pairs):
        console.print(Text(printable(f"warning  {cells}  {text}")), width=width)
    parameters = shared_parameters(records)
    if parameters:
        console.print(Text(printable(parameters)), width=width)
    for line in noise_lines(records):
        console.print(Text(printable(line)), width=width)
    if _have_differences(records, pairs):
        console.print(Text(SCREEN_NOTE), width=width)
    if has_mini_tasks(records):
        console.print(Text(f"Note: {MINI_NOTICE}."))


def _fitting_table(
    records: Sequence[Record], console: Console, width: int, pairs: Pairs
) -> tuple[Table, list[Headline]]:
    """The table with as many scores as fit, and those that do not.

    First the gaps between columns go, then the last scores.
    """
    scores = [headline for headline in headlines(records) if headline.short]
    table = _screen_table(records, scores, 1, pairs)
    if _width(table, console) <= width:
        return table, []

    def is_too_wide(count: int) -> bool:
        return _width(_screen_table(records, scores[:count], 0, pairs), console) > width

    count = bisect_left(range(1, len(scores) + 1), True, key=is_too_wide)
    return _screen_table(records, scores[:count], 0, pairs), scores[count:]


def _width(table: Table, console: Console) -> int:
    """Columns of the screen that the table takes where there is room."""
    return Measurement.get(console, console.options.update_width(1000), table).maximum


def _screen_table(
    records: Sequence[Record], scores: Sequence[Headline], gap: int, pairs: Pairs
) -> Table:
    """gap: spaces between columns."""
    table = Table(
        title=Text(printable(records[0].cell.model)),
        box=SIMPLE_HEAD,
        padding=(0, gap, 0, 0),
        show_edge=False,
    )
    table.title_justify = "left"
    table.add_column("method", overflow="fold", max_width=16, vertical="bottom")
    for name in ("bits", "bits /\nweight", *(headline.short or "" for headline in scores)):
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    timed = "tokens/s" in latencies.columns(records)
    if timed:
        title = "tokens/s,\nx dense"
        table.add_column(title, justify="right", no_wrap=True, vertical="bottom")
    called = names(records)
    for record in records:
        if record.status != "ok":
            continue
        _, bits, _, _, measured = identity(record, "")
        fields = [called[record.id], bits.text, measured.text]
        for headline in scores:
            fields.append(_screen_text(record, headline, pairs))
        if timed:
            decoding = record.latency.decoding if record.latency else None
            fields.append(_rates(decoding) if decoding else "")
        table.add_row(*[Text(printable(field)) for field in fields])
    return table


def _rates(decoding: Decoding) -> str:
    """Tokens per second, and times those of the dense model in the same minutes."""
    packed = decoding.packed[0]
    ratio = latencies.over(packed, decoding.dense[0])
    return f"{packed:.3g}" if ratio is None else f"{packed:.3g} {TIMES}{ratio:.2f}"


def _screen_text(record: Record, headline: Headline, pairs: Pairs) -> str:
    """A score, and its difference from the unquantized model or its standard error."""
    score = headline.of(record)
    if score is None:
        return ""
    contrast = pairs.from_unquantized(record, headline.key)
    if headline.is_relative or contrast is None:
        return score_text(score, contrast, digits=1, gap="")
    value = number(score.value, None, headline.unit, digits=1)
    return f"{value} {contrast.short}"


def _have_differences(records: Sequence[Record], pairs: Pairs) -> bool:
    """Whether any score is told with its distance from the unquantized model's."""
    told = [headline.key for headline in headlines(records) if not headline.is_relative]
    pairings = itertools.product(records, told)
    return any(pairs.from_unquantized(record, key) for record, key in pairings)
