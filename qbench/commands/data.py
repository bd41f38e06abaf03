"""The commands `qbench data list` and `qbench data fetch`: what models are asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from qbench.commands.options import Data, out, say

app = typer.Typer(no_args_is_help=True, help="Where the questions and texts come from.")


@app.command("list")
def data_list(data: Data = None) -> None:
    """Tables of a data source, with rows, hashes and licences."""
    from qbench.tasks.data import inventory, open_source

    source = open_source(data or "auto")
    say(f"data  {source.describe()}")
    table = Table("table", "split", "rows", "sha256", "licence", box=None, padding=(0, 2, 0, 0))
    for row in inventory(source):
        cells = ["missing" if value is None else str(value) for value in row.values()]
        table.add_row(*map(Text, cells))
    out.print(table)


@app.command("fetch", epilog="Example: `qbench data fetch data` and then `export QBENCH_DATA=data`")
def data_fetch(folder: Annotated[Path, typer.Argument(help="Folder to write.")]) -> None:
    """Download the data sets from the hub into a folder, for machines without a network."""
    from qbench.tasks.data import fetch

    fetch(folder, progress=lambda line: out.print(line, markup=False))
