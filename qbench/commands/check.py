"""The command `qbench check`: contract checks of a method, a kernel, or all that a file defines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.commands.options import out
from qbench.errors import MOST_SECONDS, ConfigError, unknown_name
from qbench.files.ordinary import is_file, ordinary_bytes

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
    time_limit: Annotated[
        float,
        typer.Option(
            min=1,
            max=MOST_SECONDS,
            help="Seconds for one check of a method; more on a busy machine.",
        ),
    ] = 60.0,
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
    from qbench.registry import methods

    path = Path(target)
    if path.suffix == ".py" and is_file(path) and b"qbench.kernels" in ordinary_bytes(path):
        yield from _verdicts_over_file(path, time_limit)
    elif target not in methods() and target in kernel_names():
        yield from check_kernel(target)
    elif path.suffix == ".py" or target in methods():
        yield from check_isolated(target, time_limit)
    else:
        known = [*methods(), *kernel_names()]
        lists = "qbench list methods` or `qbench list kernels"
        raise ConfigError(unknown_name("method or kernel", target, known, lists))


def _verdicts_over_file(path: Path, time_limit: float) -> Iterator[Verdict]:
    """Over all kernels and all methods of a file that may define both.

    Kernels are checked in this process, so the file is imported here. One that does not mention
    `qbench.kernels` defines no kernel, and is only imported in the process of its methods.
    """
    from qbench.checks.isolation import check_isolated
    from qbench.checks.kernels import check_kernel
    from qbench.experiment.plugins import load_python

    methods, kernels = load_python(path)
    for name in kernels:
        yield from check_kernel(name)
    if methods:
        yield from check_isolated(str(path), time_limit)
