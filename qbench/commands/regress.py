"""The command `qbench regress`: contract checks, one small grid for two methods, and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.commands.options import Data, Device, as_group, as_numbers, out
from qbench.errors import ConfigError

if TYPE_CHECKING:
    from qbench.experiment.grid import Grid

app = typer.Typer()


@app.command(
    epilog="Examples: `qbench regress my_variant.py --base uniquanf`   "
    "`qbench regress methods/gptq.py --base rtn --bits 3,4 --markdown comment.md`"
)
def regress(
    method: Annotated[
        str, typer.Argument(help="A method's name, or a Python file that defines one.")
    ],
    base: Annotated[str, typer.Option("--base", help="The method that it must not be worse than.")],
    model: Annotated[str, typer.Option(help="As in `qbench run`.")] = "smollm2-135m",
    bits: Annotated[str, typer.Option(help="Bits per weight code, with commas.")] = "3",
    group_size: Annotated[str | None, typer.Option(help="Inputs per group, or 'channel'.")] = None,
    preset: Annotated[str, typer.Option(help="What is asked, and on which draws.")] = "gate",
    replicates: Annotated[
        int | None, typer.Option(help="Draws of the calibration sample; default the preset's.")
    ] = None,
    data: Data = None,
    device: Device = None,
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", help="Default runs/regress/, a folder for each state of the two."),
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="As in `qbench run`.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 where undecided, too.")] = False,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="File for everything, as JSON.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="File for a comment in Markdown.")
    ] = None,
) -> None:
    """Is METHOD worse than another one, on what sees most per second?

    Exit code 0: no; 1: yes, or it breaks a contract; 2: not comparable, or it crashed.
    """
    from qbench.experiment.grid import parse_set, read_grid
    from qbench.registry import methods

    name = _checked(method)
    if name == base:
        raise ConfigError(
            f"METHOD and --base are both {name!r}; name another one, or run `qbench run` at two "
            "revisions and hold the folders against each other by `qbench compare`"
        )
    folder = out_folder or Path("runs") / "regress" / f"{name}-{_digest(method, base)}"
    flags: dict[str, Any] = {
        "model": (model,),
        "bits": as_numbers("--bits", bits),
        "methods": ("none", base, name),
        "preset": preset,
        "group_size": as_group(group_size),
        "set": parse_set(sets) if sets else None,
        "plugin": None if name in methods() else (Path(method),),
        "replicates": replicates,
        "data": data,
        "device": device,
        "out": folder,
    }
    raise typer.Exit(_judged(read_grid(None, flags), name, base, strict, as_json, markdown))


def _checked(method: str) -> str:
    """Run the contract checks; the method's name. Leaves with code 1 where one fails."""
    from qbench.checks.isolation import check_isolated

    failures = []
    subjects: dict[str, None] = {}
    for verdict in check_isolated(method, 60.0):
        subjects[verdict.subject] = None
        if verdict.outcome == "FAIL":
            failures.append(f"FAIL  {verdict.subject}  {verdict.check}: {verdict.reason}")
    for line in failures:
        _print(line)
    if failures:
        raise typer.Exit(1)
    if len(subjects) != 1:
        raise ConfigError(
            f"{method} defines {len(subjects)} methods ({', '.join(subjects) or 'none'}); give a "
            "file that defines one"
        )
    (name,) = subjects
    _print(f"ok    {name}  all contract checks")
    return name


def _digest(method: str, base: str) -> str:
    """8 hex digits that stand for the present state of the file and of the base's source."""
    import hashlib

    from qbench.registry import method_class, source_hash

    path = Path(method)
    state = path.read_bytes() if path.is_file() else source_hash(method_class(method)).encode()
    return hashlib.sha256(state + source_hash(method_class(base)).encode()).hexdigest()[:8]


def _judged(
    grid: Grid,
    name: str,
    base: str,
    strict: bool,
    as_json: Path | None,
    markdown: Path | None,
) -> int:
    """Run the grid, and hold the two methods' cells against each other; the exit code."""
    import json

    from qbench.commands.compare import report
    from qbench.commands.main import run_grid
    from qbench.commands.sides import read_side
    from qbench.comparison.verdicts import compare
    from qbench.comparison.written import as_json as plain
    from qbench.files.atomic import write_text

    grid.check_request()
    run_grid(grid)
    sides = [read_side(f"{grid.out}:{method}")[0] for method in (base, name)]
    verdict = compare(sides[0], sides[1])
    if as_json is not None:
        write_text(as_json, json.dumps(plain(verdict), indent=1, allow_nan=False) + "\n")
    return report(verdict, False, markdown, strict)


def _print(line: str) -> None:
    out.print(line, markup=False, highlight=False, soft_wrap=True)
