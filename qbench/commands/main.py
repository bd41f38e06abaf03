"""The command line: `qbench run`, `report` and `list`, and its entry point.

The commands about one model are in `folders` and `model_files`, those about this machine in
`health` and `machine`, the others in modules of their own. Results go to stdout, progress to
stderr. Exit codes: 0 fine, 1 a failed cell, latency, check or file, 2 misuse, 130 interrupted. A
command imports what it needs when it runs, so that help, lists and typing errors are fast.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from qbench.commands import (
    check,
    cleaning,
    compare,
    config,
    data,
    environments,
    folders,
    health,
    layers,
    machine,
    model_files,
    push,
    regress,
    status,
)
from qbench.commands.errors import run_in_words
from qbench.commands.executing import as_executor, require_engine
from qbench.commands.grid_flags import Asked, with_grid_flags
from qbench.commands.options import Plugins, announce, err, out, say
from qbench.commands.planned import (
    accuracy,
    failed_latencies,
    left_to_do,
    plan_line,
    protocol,
    show_plan,
)
from qbench.commands.tables import show_table
from qbench.errors import ConfigError
from qbench.files.atomic import require_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from qbench.commands.executing import Executor
    from qbench.experiment.grid import Grid
    from qbench.experiment.plan import Plan
    from qbench.experiment.store import Store
    from qbench.experiment.view import View
    from qbench.records import Record

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(check.app)
app.add_typer(folders.app)
app.add_typer(model_files.app)
app.add_typer(health.app)
app.add_typer(machine.app)
app.add_typer(cleaning.app)
app.add_typer(compare.app)
app.add_typer(regress.app)
app.add_typer(status.app)
app.add_typer(layers.app)
app.add_typer(push.app)
app.add_typer(compare.baseline_app, name="baseline")
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")
app.add_typer(environments.app, name="env")
DRY = "Show the cells with estimated time, memory and disk, and stop."


def _say_version(wanted: bool) -> None:
    if wanted:
        import qbench

        out.print(f"qbench {qbench.__version__}", markup=False, highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Say which qbench this is.", callback=_say_version),
    ] = False,
) -> None:
    """Which quantization method, at how many real bits, is better, and is the difference real?"""


@app.command(
    epilog="Examples: `qbench run --bits 2,3,4`   "
    "`qbench run --model ./llama --methods rtn,gptq --group-size channel`   "
    "`qbench run --methods gptq --set gptq.damp=0.01,0.1 --dry-run`"
)
@with_grid_flags
def run(
    asked: Asked,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY)] = False,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="File for a Chrome trace of the cells and their phases."),
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", help="What runs the cells: local, ray or slurm.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="Of the Ray cluster; default RAY_ADDRESS, or this machine. For slurm: slurm "
            "(default), or local or debug to try it without.",
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", help="Of sbatch, such as partition=gpu. May be repeated."),
    ] = None,
) -> None:
    """Quantize and evaluate a grid of methods and bits, and end with a leaderboard.
    Run it again to resume.
    """
    from qbench.experiment.grid_checks import check_request

    if dry_run and trace is not None:
        raise ConfigError(f"--trace {trace} does nothing with --dry-run; leave one of them out")
    grid = asked.grid()
    check_request(grid)  # before `run_grid` imports torch
    require_place(trace)
    place = as_executor(executor, address, slurm)
    if not dry_run:
        require_engine(executor, address)
    work = partial(run_plan, executor=place)
    raise typer.Exit(run_grid(grid, dry_run, work, trace, elsewhere=place is not None))


def run_grid(
    grid: Grid,
    dry_run: bool = False,
    work: Callable[[Plan, Store], list[Record]] | None = None,
    trace: Path | None = None,
    elsewhere: bool = False,
) -> int:
    """Plan the grid, and run it unless this is a dry run; returns the exit code.

    work: what runs the plan, in place of `run_plan`. trace: file for a Chrome trace. elsewhere:
    whether other machines do the work.
    """
    from qbench.experiment.preloaded import CHECKS, MODULES
    from qbench.isolation import preload

    if not dry_run:
        watching = CHECKS if grid.plugin else ()
        # Beside the plan, which imports much of it in this process.
        preload(*MODULES, *watching, __name__)
    from qbench.commands.item_texts import write_item_texts
    from qbench.comparison.pairs import shared_pairs
    from qbench.experiment.grid import CALIBRATION
    from qbench.experiment.plan import make_plan
    from qbench.experiment.store import Store
    from qbench.experiment.trace import write_trace
    from qbench.reports.registry import require_report_place, write_reports

    folder = grid.folder
    with _claim_of(folder, dry_run):
        plan = make_plan(grid, announce, dry_run=dry_run, elsewhere=elsewhere)
    say(protocol(plan))
    if dry_run:
        show_plan(plan, with_latency=not elsewhere)
        return 0
    if CALIBRATION in grid.set and not any(cell.calibration for cell in plan.cells):
        _print_warnings(["the calibration is set, and no method of this run calibrates"])
    store = Store(folder)
    store.require_writable(plan.cells)
    require_report_place(folder)
    records = (work or run_plan)(plan, store)
    write_item_texts(plan, records, folder)
    with shared_pairs():
        _print_leaderboard(records, folder)
        _print_report(write_reports(store.read_records()[0], folder), folder)
    if trace is not None:
        write_trace(store, plan.cells, trace)
    unmeasured = None if elsewhere else failed_latencies(plan, records)
    if unmeasured is not None:
        _print_warnings([unmeasured])
    return 1 if unmeasured or any(record.status == "failed" for record in records) else 0


def _claim_of(folder: Path, dry_run: bool) -> AbstractContextManager[None]:
    """A context that claims the folder of an existing run, so that `qbench status` sees a runner.

    A new folder is made only after the plan. Unlike `Store.at_work`, this removes nothing at its
    end.
    """
    from qbench.experiment.store import RUNNERS, Store
    from qbench.files.claims import claimed_in_time
    from qbench.files.ordinary import is_folder

    if dry_run or not is_folder(folder / "records"):
        return nullcontext()
    return claimed_in_time(Store(folder).claim(RUNNERS), shared=True)


def run_plan(plan: Plan, store: Store, executor: Executor | None = None) -> list[Record]:
    """Run the cells that are not done, under a live view; returns the records of all cells.

    executor: what runs them, None for this machine.
    """
    from qbench.commands.progress import LiveView
    from qbench.experiment.plan import expected_seconds
    from qbench.experiment.runner import run as run_cells
    from qbench.experiment.timings import Clock, learn_from

    if executor is not None and plan.grid.with_latency:
        _print_warnings(
            ["latencies are not measured elsewhere; the same command without --executor adds them"]
        )
    records, complaints = store.read_records()
    _print_warnings(complaints)
    work = left_to_do(plan, records, with_latency=executor is None)
    total = expected_seconds(plan, work.done) + sum(work.latencies.values())
    out.print(plan_line(plan, work, total, store.folder), markup=False, soft_wrap=True)
    removed = store.remove_leftovers()
    if removed:
        _print_warnings([f"{len(removed)} leftovers of killed saves were removed"])
    with LiveView(out, err, work.seconds, work.latencies, plan.labels) as view:
        clock = Clock(view)
        longer: list[float] = []
        try:
            records = (executor or run_cells)(plan, store, cast("View", clock))
        finally:
            if executor is None:  # what cells took elsewhere says nothing of this machine
                longer = learn_from(plan, store.read_records()[0], clock)
    if longer:
        say(accuracy(clock.seconds, total, longer))
    return records


@app.command(epilog="Example: `qbench report runs/smollm2-135m`")
def report(folder: Annotated[Path, typer.Argument(help="The --out folder of a run.")]) -> None:
    """Write the tables, pictures and the page again, from the records alone."""
    from qbench.comparison.pairs import shared_pairs
    from qbench.environment import cores
    from qbench.experiment.store import read_records
    from qbench.reports.registry import write_reports

    records, complaints = read_records(folder)
    _print_warnings(complaints)
    with shared_pairs():
        _print_leaderboard(records, folder)
        _print_report(write_reports(records, folder, cores()), folder)


@app.command(name="list", epilog="Example: `qbench list methods`")
def list_(
    what: Annotated[
        str, typer.Argument(help="methods, tasks, models, presets, sweeps or kernels.")
    ],
    plugin: Plugins = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
) -> None:
    """List what there is, by name; broken entries with the reason."""
    from qbench.commands.listing import as_markdown, listing

    if plugin:
        from qbench.experiment.plugins import load_plugins

        load_plugins(plugin)
    columns, rows = listing(what)
    if markdown:
        print(as_markdown(columns, rows), end="")
        return
    show_table(columns, rows, sentences=columns[1:])  # what one has to type is whole


def _print_leaderboard(records: Sequence[Record], folder: Path) -> None:
    from qbench.reports.terminal import screen

    screen(records, out, folder)


def _print_paths(title: str, paths: Iterable[Path]) -> None:
    line = "  ".join(map(str, paths))
    say(f"{title}  {line}")


def _print_report(paths: Iterable[Path], folder: Path) -> None:
    """Print the files of the folder itself, the page first, which links to those in subfolders."""
    files = sorted(path for path in paths if path.parent == folder)
    _print_paths("report", sorted(files, key=lambda path: path.suffix != ".html"))


def _print_warnings(complaints: Iterable[str]) -> None:
    for complaint in complaints:
        announce(f"warning: {complaint}")


def main() -> None:
    """Entry point: errors of qbench are one sentence, with a traceback only under --debug."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    run_in_words(app)
