"""The commands `qbench env create`, `list` and `remove`: where other packages quantize."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qbench.commands.options import err, say
from qbench.commands.tables import show_table
from qbench.errors import StoreError

if TYPE_CHECKING:
    from qbench.external.contract import Package

app = typer.Typer(
    no_args_is_help=True,
    help="Environments of other packages, whose methods `qbench run --methods` takes as well.",
)
Names = Annotated[list[str], typer.Argument(help="Packages of `qbench env list`.")]


@app.command(epilog="Example: `qbench env create hqq gptqmodel`")
def create(names: Names) -> None:
    """Install packages, each into an environment of its own; one that is there is made anew."""
    from qbench.external.environments import create
    from qbench.external.packages import get_package, requirements

    packages = [get_package(name) for name in names]
    for package in packages:
        requirements(package)  # refused before any work where one cannot be installed
    failed = False
    for package in packages:
        try:
            with err.status(f"installing {package.name}"):
                made = create(package)
        except StoreError as error:
            failed = True
            err.print(f"qbench: {error}", markup=False, highlight=False, soft_wrap=True)
            continue
        assert made.installed is not None
        say(
            f"{package.name}  {len(made.installed.packages)} packages, {made.nbytes / 1e6:.0f} MB, "
            f"{made.installed.seconds:.0f} s with {made.installed.installer}"
        )
    raise typer.Exit(1 if failed else 0)


@app.command(name="list", epilog="Example: `qbench env list`")
def list_() -> None:
    """Every package: what is installed, its size, its methods; what is broken, and why."""
    from qbench.external.environments import environments, state
    from qbench.external.packages import packages

    rows = []
    for package in packages().values():
        present = state(package, measured=True)
        size = f"{present.nbytes / 1e6:.0f}" if present.nbytes else ""
        about = package.about if present.reason is None else f"{package.about}: {present.reason}"
        methods = methods_of(package)
        offered = [name for name, reason in methods.items() if reason is None]
        rows.append((package.name, present.status, size, " ".join(offered), about))
        for name, reason in methods.items():
            if reason is not None:
                rows.append(("", "unavailable", "", name, reason))
    columns = ("package", "state", "MB", "methods", "about")
    show_table(columns, rows, sentences=("methods", "about"))
    say(f"environments  {environments()}")


@app.command(epilog="Example: `qbench env remove hqq`")
def remove(names: Names) -> None:
    """Remove environments from the disk."""
    from qbench.external.environments import remove
    from qbench.external.packages import get_package

    for package in [get_package(name) for name in names]:
        say(f"{package.name}  {'removed' if remove(package) else 'was not there'}")


def methods_of(package: Package) -> dict[str, str | None]:
    """The names of a package's methods, each with why it cannot be run; None where it can."""
    from qbench.registry import external, method_class

    methods = {}
    for name in external():
        method = method_class(name)
        if method.package == package:
            methods[name] = method.unavailable
    return methods
