"""The command `qbench status`: how far a run is, from another terminal or another machine."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from qbench.commands.options import out
from qbench.commands.planned import how_long
from qbench.commands.tables import aligned, widths_of
from qbench.outside_text import printable

if TYPE_CHECKING:
    from qbench.experiment.status import CellStatus, RunStatus

app = typer.Typer()
PAUSE = 2.0  # seconds between two looks of --watch
IDLE = 2  # looks in turn at which nobody is at work: a run that begins is nobody's for a moment


@app.command(epilog="Example: `qbench status runs/smollm2-135m --watch`")
def status(
    folder: Annotated[Path, typer.Argument(help="The --out folder of a run.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every two seconds until nobody is at work.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every cell, as JSON.")] = False,
) -> None:
    """Show how far a run is: what is done, at work with block and loss, failed, and the time left.
    Runners of any terminal or machine that share the folder are seen.
    """
    from qbench.experiment.status import read_status

    run = read_status(folder)
    if as_json:
        body = asdict(run) | {"folder": str(folder), "counts": run.counts}
        print(json.dumps(body, indent=1))
        return
    if not watch:
        out.print(shown(run), soft_wrap=True)
        return
    idle = 0 if run.at_work else 1
    with Live(shown(run), console=out, auto_refresh=False) as live:
        while idle < IDLE:
            time.sleep(PAUSE)
            run = read_status(folder)
            idle = 0 if run.at_work else idle + 1
            live.update(shown(run), refresh=True)


def shown(run: RunStatus) -> RenderableType:
    """One line for the whole, then the cells at work, and what failed with its reason."""
    counts = ", ".join(f"{count} {state}" for state, count in run.counts.items())
    whole = f"{run.folder}  {len(run.cells)} cells: {counts or 'none'}; {_left(run)}"
    lines: list[RenderableType] = [Text(printable(whole))]
    rows = []
    for cell in run.cells:
        if cell.state == "running":
            rows.append([printable(word) for word in _row(cell)])
    widths = widths_of(rows)
    lines += [Text(aligned(row, widths)) for row in rows]
    for cell in run.cells:
        if cell.state in ("failed", "skipped"):
            reason = " ".join((cell.reason or "").split())
            lines.append(Text(printable(f"{cell.state}  {cell.model}  {cell.label}  {reason}")))
    lines += [Text(printable(f"warning: {complaint}")) for complaint in run.complaints]
    return Group(*lines)


def _left(run: RunStatus) -> str:
    if run.seconds_left is not None:
        doing = "latencies are measured, " if run.measuring else ""
        return f"{doing}about {how_long(run.seconds_left)} left"
    if run.counts.get("waiting"):
        return "nobody is at work; the command of the run goes on from here"
    return "nobody is at work"


def _row(cell: CellStatus) -> list[str]:
    """The row of a cell at work."""
    since = "" if cell.seconds is None else f"{cell.seconds:.0f} s"
    how_far = f"{cell.fraction:.0%}"
    return ["running", cell.model, cell.label, how_far, cell.text, since, cell.host]
