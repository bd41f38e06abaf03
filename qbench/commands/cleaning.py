"""The command `qbench gc`: what killed runs have left in their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qbench.commands.options import say

app = typer.Typer()


@app.command(epilog="Example: `qbench gc runs/smollm2-135m --delete`")
def gc(
    folder: Annotated[Path, typer.Argument(help="The --out folder of a run.")],
    delete: Annotated[bool, typer.Option("--delete", help="Remove it, too.")] = False,
) -> None:
    """List what interrupted and killed runs have left; nothing is removed without --delete.

    Those are halves of saves, and what cells share while a run is at work. Results stay.
    """
    from qbench.experiment.store import open_run

    litter = open_run(folder).litter(delete)
    for path, size in litter:
        say(f"{'removed' if delete else 'litter '}  {size / 1e6:9.1f} MB  {path}")
    total = sum(size for _, size in litter)
    hint = "" if delete or not litter else "; --delete removes them"
    say(f"{len(litter)} leftovers, {total / 1e6:.1f} MB{hint}")
