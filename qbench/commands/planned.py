"""The lines that `qbench run` prints about a plan: at the start, in a dry run, and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from qbench.commands.options import out, say
from qbench.commands.tables import show_table
from qbench.records import threads_in_words

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from qbench.experiment.plan import Plan
    from qbench.records import Record


class LeftToDo(NamedTuple):
    """What a run of a plan has to do.

    done, skipped: ids of cells. seconds: the estimate for each cell that is to run, by its id.
    latencies: likewise, for each cell whose latency is to be measured.
    """

    done: set[str]
    skipped: set[str]
    seconds: dict[str, float]
    latencies: dict[str, float]


def left_to_do(plan: Plan, records: Sequence[Record], with_latency: bool) -> LeftToDo:
    """What a run has to do. records: of its folder. with_latency: whether it measures latencies."""
    done = {record.id for record in records if record.status == "ok"}
    done &= {cell.id for cell in plan.cells}
    skipped = plan.skipped.keys() - done
    timed = {record.id for record in records if record.latency and not record.latency.reason}
    seconds = {}
    latencies = {}
    for cell in plan.cells:
        if cell.id not in done | skipped:
            seconds[cell.id] = plan.estimates[cell.id].seconds / plan.jobs
        if with_latency and cell.id not in timed | skipped:
            latencies[cell.id] = plan.estimates[cell.id].latency
    return LeftToDo(done, skipped, seconds, latencies)


def plan_line(plan: Plan, work: LeftToDo, seconds: float, folder: Path) -> str:
    """The line of a run that begins with `plan`. seconds: what all of the work is to take."""
    skipped = f", {len(work.skipped)} skipped" if work.skipped else ""
    return (
        f"plan  {len(plan.cells)} cells: {len(work.seconds)} to run, "
        f"{len(work.done)} done{skipped} ({folder}); "
        f"about {how_long(seconds)}, {place(plan)}{downloads(plan, work.seconds)}"
    )


def failed_latencies(plan: Plan, records: Sequence[Record]) -> str | None:
    """A sentence about the latencies that a run was to measure and failed to; None without any."""
    failed = [record for record in records if record.latency and record.latency.failed]
    if not failed or not plan.grid.with_latency:
        return None
    cells = ", ".join(f"{record.cell.model} {plan.labels[record.id]}" for record in failed)
    return (
        f"the latency of {cells} could not be measured; the same command tries again, and "
        "--no-latency does without"
    )


def protocol(plan: Plan) -> str:
    """The first line of a run: its data, with a warning if they are stand-ins, and its preset."""
    from qbench.experiment.data_choice import data_line

    about = plan.grid.defaults["about"]
    of_run = plan.protocol
    line = f"{data_line(plan.source, plan.warning)}; preset {plan.grid.preset}: {about}"
    line += f"; protocol {of_run['hash']} ({of_run['name']})"
    if "differs" in plan.grid.defaults:
        line += f"; other than the source: {plan.grid.defaults['differs']}"
    return line


def downloads(plan: Plan, left: Collection[str]) -> str:
    """The part of the line about downloads; empty where all weights are here.

    left: ids of the cells that are to run.
    """
    models = {cell.model for cell in plan.cells if cell.id in left}
    nbytes = sum(plan.downloads.get(model, 0) for model in models)
    return f"; downloads {nbytes / 1e9:.1f} GB of weights first" if nbytes else ""


def place(plan: Plan) -> str:
    """How the cells compute, such as `bfloat16 on cpu, 2 cells at a time on 1 thread each`."""
    words = f"{plan.cells[0].dtype} on {plan.device}"
    if plan.jobs > 1:
        threads = threads_in_words(plan.threads)
        words += f", {plan.jobs} cells at a time on {threads} each"
    return words


def accuracy(seconds: float, expected: float, longer: Sequence[float]) -> str:
    """The line that compares the estimate with what the run and its cells (`longer`) have taken."""
    line = f"time  {_duration(seconds)}, {seconds / expected:.2f} times the {_duration(expected)}"
    return f"{line} estimated; its cells took {min(longer):.2f} to {max(longer):.2f} times theirs"


def how_long(seconds: float) -> str:
    """`27 min`, `55.6 h` or `506 days`."""
    if seconds < 3 * 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 3 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _grounds(plan: Plan) -> str:
    """From what the estimate was made, in words."""
    from qbench.environment import is_present

    if not is_present(plan.device):
        return "a GPU's data sheet, as there is none here"
    if any(timings.factors for timings in plan.timings.values()):
        return "what earlier runs took on this machine"
    return "a matrix product timed on this machine"


def show_plan(plan: Plan, with_latency: bool = True) -> None:
    """Print what each cell will cost, which are skipped, and what all cost together.

    with_latency: whether the run would measure latencies.
    """
    from qbench.experiment.plan import expected_seconds

    words = ("cell", "model", "method")
    costs = ("quantize", "evaluate", "latency", "peak memory", "disk")
    rows = []
    total = expected_seconds(plan)
    saved: dict[str, int] = {}
    for cell in plan.cells:
        if cell.id in plan.skipped:
            rows.append([cell.id, cell.model, plan.labels[cell.id], "skipped", "", "", "", ""])
            continue
        cost = plan.estimates[cell.id]
        latency = cost.latency if with_latency else 0.0
        total += latency
        saved[cell.artifact] = cost.disk_bytes
        rows.append(
            [
                cell.id,
                cell.model,
                plan.labels[cell.id],
                f"{cost.quantize:.0f} s",
                f"{sum(cost.tasks.values()):.0f} s",
                f"{latency:.0f} s",
                f"{cost.peak_bytes / 1e9:.1f} GB",
                f"{cost.disk_bytes / 1e9:.1f} GB",
            ]
        )
    show_table((*words, *costs), rows, right=costs)
    for cell in plan.cells:
        if cell.id in plan.skipped:
            reason = plan.skipped[cell.id]
            say(f"skipped  {cell.model}  {plan.labels[cell.id]}  {reason}")
    left = [cell.id for cell in plan.cells if cell.id not in plan.skipped]
    out.print(
        f"{len(plan.cells)} cells, about {how_long(total)} "
        f"(estimated from {_grounds(plan)}), {sum(saved.values()) / 1e9:.1f} GB on disk"
        f"{downloads(plan, left)}",
        soft_wrap=True,
    )
