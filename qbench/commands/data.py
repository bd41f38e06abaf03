"""The commands `qbench data list` and `qbench data fetch`: what models are asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qbench.commands.options import Data, out, say
from qbench.commands.tables import show_table

app = typer.Typer(no_args_is_help=True, help="Where the questions and texts come from.")


@app.command("list")
def data_list(data: Data = None) -> None:
    """Tables of a data source, with rows, hashes and licences."""
    from qbench.tasks.data import inventory, open_source

    source = open_source(data or "auto")
    say(f"data  {source.describe()}")
    rows = []
    for row in inventory(source):
        rows.append(["missing" if value is None else str(value) for value in row.values()])
    show_table(("table", "split", "rows", "sha256", "licence"), rows, sentences=("licence",))


@app.command("fetch", epilog="Example: `qbench data fetch data` and then `export QBENCH_DATA=data`")
def data_fetch(folder: Annotated[Path, typer.Argument(help="Folder to write.")]) -> None:
    """Download the data sets from the hub into a folder, for machines without a network."""
    from qbench.tasks.data import fetch

    fetch(folder, progress=lambda line: out.print(line, markup=False))
