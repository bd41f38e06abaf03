"""The command line: `qbench run`, `report`, `list`, `check`, `data`; others are in `folders` and `machine`.

Results on stdout, progress on stderr. Exit codes: 0 fine, 1 a failed cell, check or file, 2 misuse,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from qbench.commands import folders, machine
from qbench.commands.options import (
    Data,
    Device,
    Model,
    Plugins,
    Sets,
    as_group,
    as_names,
    as_numbers,
    err,
    out,
)
from qbench.errors import QbenchError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(no_args_is_help=True, help="Where the questions and texts come from.")
app.add_typer(folders.app)
app.add_typer(machine.app)
app.add_typer(data_app, name="data")
DRY = "Show the cells with estimated time and memory, and stop."


@app.callback()
def _options(debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False) -> None:
    """Which quantization method, at how many real bits, is better, and is the difference real?"""


@app.command(
    epilog="Examples: `qbench run --bits 2,3,4`   `qbench run --model ./llama --methods rtn,gptq --group-size channel`"
    "   `qbench run --methods gptq --set gptq.damp=0.01,0.1 --dry-run`"
)
def run(
    model: Model = "smollm2-135m",
    bits: Annotated[str | None, typer.Option(help="Bits per weight code, with commas.")] = None,
    methods: Annotated[str | None, typer.Option(help="With commas; `qbench list methods`.")] = None,
    sweep: Annotated[
        str | None, typer.Option(help="A named list of variants; `qbench list sweeps`.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="With commas; `qbench list tasks`.")] = None,
    preset: Annotated[str | None, typer.Option(help="quick or paper.")] = None,
    group_size: Annotated[str | None, typer.Option(help="Inputs per group, or 'channel'.")] = None,
    symmetric: Annotated[bool | None, typer.Option("--symmetric", help="Symmetric grids.")] = None,
    sets: Sets = None,
    plugin: Plugins = None,
    data: Data = None,
    seed: Annotated[int | None, typer.Option(help="Of the calibration sample.")] = None,
    device: Device = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the evaluated model: auto, float32, bfloat16, float16.")
    ] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", help="Records, artifacts and report; default runs/MODEL."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML grid; flags override it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY)] = False,
) -> None:
    """Quantize and evaluate a grid of methods and bits, and end with a leaderboard. Run it again to resume."""
    from qbench.experiment.grid import parse_set, read_grid

    explicit_model = model if config is None or model != "smollm2-135m" else None
    grid = read_grid(
        config,
        {
            "model": as_names(explicit_model),
            "bits": as_numbers("--bits", bits),
            "methods": as_names(methods),
            "sweep": sweep,
            "tasks": as_names(tasks),
            "preset": preset,
            "group_size": as_group(group_size),
            "symmetric": symmetric,
            "set": parse_set(sets) if sets else None,
            "plugin": plugin or None,
            "data": data,
            "seed": seed,
            "device": device,
            "dtype": dtype,
            "out": out_folder,
        },
    )
    raise typer.Exit(_run(grid, dry_run))


def _run(grid: Any, dry_run: bool) -> int:
    from qbench.commands.progress import LiveView
    from qbench.experiment.plan import make_plan
    from qbench.experiment.runner import run as run_plan
    from qbench.experiment.store import Store
    from qbench.reports.page import write_report
    from qbench.reports.tables import screen

    plan = make_plan(grid)
    folder = grid.out or Path("runs") / Path(grid.model[0]).name.replace("@", "-")
    out.print(f"data  {plan.source.describe()}", markup=False, soft_wrap=True)
    if dry_run:
        _show_plan(plan)
        return 0
    store = Store(folder)
    records, complaints = store.read_records()
    for complaint in complaints:
        err.print(f"warning: {complaint}", markup=False)
    done = {record.id for record in records if record.status == "ok"}
    todo = {cell.id: plan.estimates[cell.id].seconds for cell in plan.cells if cell.id not in done}
    minutes = sum(todo.values()) / 60
    out.print(
        f"plan  {len(plan.cells)} cells: {len(todo)} to run, {len(plan.cells) - len(todo)} done ({folder}); "
        f"about {minutes:.0f} min, {plan.cells[0].dtype} on {plan.device}",
        markup=False,
        soft_wrap=True,
    )
    with LiveView(out, err, todo) as view:
        found = run_plan(plan, store, view)
    screen(found, out)
    written = write_report(store.read_records()[0], folder)
    out.print("report  " + "  ".join(str(path) for path in written), markup=False, soft_wrap=True)
    return 0 if all(record.status == "ok" for record in found) else 1


def _show_plan(plan: Any) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("cell", "model", "method", "quantize", "evaluate", "peak memory"):
        table.add_column(
            name, justify="right" if name in ("quantize", "evaluate", "peak memory") else "left"
        )
    for cell in plan.cells:
        cost = plan.estimates[cell.id]
        facts = (
            f"{cost.quantize:.0f} s",
            f"{sum(cost.tasks.values()):.0f} s",
            f"{cost.peak_bytes / 1e9:.1f} GB",
        )
        table.add_row(cell.id, Text(cell.model), Text(cell.label), *facts)
    out.print(table)
    total = sum(plan.estimates[cell.id].seconds for cell in plan.cells)
    out.print(
        f"{len(plan.cells)} cells, about {total / 60:.0f} min (estimated from a matrix product timed on this machine)"
    )


@app.command(epilog="Example: `qbench report runs/smollm2-135m`")
def report(folder: Annotated[Path, typer.Argument(help="The --out folder of a run.")]) -> None:
    """Write the tables, pictures and the page again, from the records alone."""
    from qbench.experiment.store import read_records
    from qbench.reports.page import write_report
    from qbench.reports.tables import screen

    records, complaints = read_records(folder)
    for complaint in complaints:
        err.print(f"warning: {complaint}", markup=False)
    screen(records, out)
    out.print(
        "report  " + "  ".join(str(path) for path in write_report(records, folder)),
        markup=False,
        soft_wrap=True,
    )


@app.command(name="list", epilog="Example: `qbench list methods`")
def list_(
    what: Annotated[str, typer.Argument(help="methods, tasks, models, sweeps or kernels.")],
    plugin: Plugins = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
) -> None:
    """What there is, by name; broken plug-ins with their reason."""
    from qbench.commands.listing import as_markdown, listing

    for path in plugin or []:
        from qbench.registry import load_plugin

        load_plugin(path)
    columns, rows = listing(what)
    if markdown:
        print(as_markdown(columns, rows), end="")
        return
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)


@app.command(epilog="Examples: `qbench check rtn`   `qbench check my_variant.py`")
def check(
    target: Annotated[
        str, typer.Argument(help="A method's name, or a Python file that defines methods.")
    ],
) -> None:
    """Run the contract checks over a method; exit code 1 where one fails."""
    from qbench.checks import run_checks
    from qbench.registry import load_plugin

    names = load_plugin(Path(target)) if target.endswith(".py") else [target]
    failed = 0
    for name in names:
        for title, problem in run_checks(name):
            failed += problem is not None
            out.print(
                f"{'FAIL' if problem else 'ok':5} {name}  {title}{f': {problem}' if problem else ''}",
                markup=False,
                soft_wrap=True,
            )
    raise typer.Exit(1 if failed else 0)


@data_app.command("list")
def data_list(data: Data = None) -> None:
    """Tables of a data source, with rows, hashes and licences."""
    from qbench.tasks.data import inventory, open_source

    source = open_source(data or "auto")
    out.print(f"data  {source.describe()}", markup=False, soft_wrap=True)
    table = Table("table", "split", "rows", "sha256", "licence", box=None, padding=(0, 2, 0, 0))
    for row in inventory(source):
        table.add_row(*(Text("missing" if value is None else str(value)) for value in row.values()))
    out.print(table)


@data_app.command(
    "fetch", epilog="Example: `qbench data fetch data` and then `export QBENCH_DATA=data`"
)
def data_fetch(folder: Annotated[Path, typer.Argument(help="Folder to write.")]) -> None:
    """Download the data sets from the hub into a folder, for machines without a network."""
    from qbench.tasks.data import fetch

    fetch(folder, progress=lambda line: out.print(line, markup=False))


def main() -> None:
    """Entry point: one sentence for every error of ours, a traceback only with --debug."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)  # typer returns the code of an exit, and 130 for Ctrl-C
    except QbenchError as error:
        if debug:
            raise
        _complain(str(error))
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if debug or not hasattr(error, "format_message"):
            raise
        _complain(error.format_message())
        raise SystemExit(2) from None
    if code == 130:
        _complain(
            "interrupted; everything finished is kept, and the same command goes on from here"
        )
    raise SystemExit(code if isinstance(code, int) else 0)


def _complain(text: str) -> None:
    err.print(f"qbench: {text}", markup=False, highlight=False, soft_wrap=True)
