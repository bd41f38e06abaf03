"""The command `qbench check`: contract checks of a method, the methods in a file, or a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.commands.options import out

if TYPE_CHECKING:
    from qbench.checks.verdict import Verdict

app = typer.Typer()


@app.command(
    epilog="Examples: `qbench check rtn`   `qbench check cpu-binary`   `qbench check my_variant.py`"
)
def check(
    target: Annotated[
        str,
        typer.Argument(help="A method's or kernel's name, or a Python file that defines them."),
    ],
    time_limit: Annotated[float, typer.Option(help="Seconds for one check of a method.")] = 60.0,
) -> None:
    """Run the contract checks over a method or a kernel; exit code 1 where one fails.

    Methods are checked in a process of their own. `n/a` is a promise that does not concern them.
    """
    failed = False
    for verdict in _verdicts(target, time_limit):
        failed |= verdict.outcome == "FAIL"
        reason = f": {verdict.reason}" if verdict.reason else ""
        out.print(
            f"{verdict.outcome:5} {verdict.subject}  {verdict.check}{reason}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    raise typer.Exit(1 if failed else 0)


def _verdicts(target: str, time_limit: float) -> Iterator[Verdict]:
    from qbench.checks.isolation import check_isolated
    from qbench.checks.kernels import check_kernel, kernel_names
    from qbench.kernels.registry import load_plugin
    from qbench.registry import methods

    path = Path(target)
    if path.suffix == ".py" and path.is_file() and "Kernel(" in path.read_text():
        for name in load_plugin(path):
            yield from check_kernel(name)
    elif target not in methods() and target in kernel_names():
        yield from check_kernel(target)
    else:
        yield from check_isolated(target, time_limit)
