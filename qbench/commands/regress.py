"""The command `qbench regress`: contract checks, one small grid for two methods, and a verdict."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.commands.options import Data, Device, as_group, as_numbers, say
from qbench.commands.variants import Variant, read_variant
from qbench.files.atomic import remove_file, require_place, write_text
from qbench.outside_text import markdown as escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qbench.checks.verdict import Verdict

app = typer.Typer()
CHECK_SECONDS = 300.0  # for one contract check: a busy machine breaks no contract
BROKEN = "breaks its contract"  # the outcome where the checks fail


@app.command(
    epilog="Examples: `qbench regress my_variant.py --base uniquanf`   "
    "`qbench regress methods/gptq.py --base HEAD~3:methods/gptq.py --bits 3,4`"
)
def regress(
    method: Annotated[
        str, typer.Argument(help="A method's name, a Python file, or REVISION:FILE as git has it.")
    ],
    base: Annotated[str, typer.Option("--base", help="The same; what it must not be worse than.")],
    model: Annotated[str, typer.Option(help="As in `qbench run`.")] = "smollm2-135m",
    bits: Annotated[str, typer.Option(help="Bits per weight code, with commas.")] = "3",
    group_size: Annotated[str | None, typer.Option(help="Inputs per group, or 'channel'.")] = None,
    preset: Annotated[str, typer.Option(help="What is asked, and on which draws.")] = "gate",
    replicates: Annotated[
        int | None, typer.Option(help="Draws of sample and seed; default the preset's.")
    ] = None,
    data: Data = None,
    device: Device = None,
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", help="Default runs/regress/, a folder for each state of the two."),
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="As in `qbench run`.")] = None,
    early_stop: Annotated[
        bool,
        typer.Option(
            "--early-stop/--no-early-stop",
            help="Whether to make no more draws once the verdict is in.",
        ),
    ] = True,
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
    from qbench.commands.compare import report
    from qbench.commands.gated import judged, refuse_one_method, refuse_request
    from qbench.comparison.written import as_json as plain
    from qbench.experiment.grid import parse_set

    require_place(as_json, markdown)
    for path in (as_json, markdown):
        if path is not None:
            remove_file(path)  # whatever ends this run, no verdict of an earlier one stays
    variant, other = read_variant(method), read_variant(base)
    refuse_one_method(other.method, variant.method)
    flags: dict[str, Any] = {
        "model": (model,),
        "bits": as_numbers("--bits", bits),
        "preset": preset,
        "group_size": as_group(group_size),
        "set": parse_set(sets) if sets else None,
        "replicates": replicates,
        "data": data,
        "device": device,
        "out": out_folder,
    }
    sides = (other, variant)
    refuse_request(sides, flags)
    failures = _failures(variant, partial(refuse_request, sides, flags, imported=True))
    if failures:
        _write_broken(failures, (base, method), as_json, markdown)
        raise typer.Exit(1)
    verdict = judged(other, variant, flags, early_stop)
    if as_json is not None:
        write_text(as_json, json.dumps(plain(verdict), indent=1, allow_nan=False) + "\n")
    raise typer.Exit(report(verdict, False, markdown, strict))


def _failures(variant: Variant, refuse: Callable[[], None]) -> list[Verdict]:
    """Run the contract checks, and print and return those that fail.

    refuse: is called once the method has been imported in another process, and may be in this one.
    """
    from qbench.checks.isolation import check_isolated
    from qbench.experiment.preloaded import CHECKS, MODULES
    from qbench.isolation import preload

    preload(*MODULES, *CHECKS)  # of the cells, too: the server starts once
    verdicts: list[Verdict] = []
    for verdict in check_isolated(variant.target, CHECK_SECONDS):
        if not verdicts:
            refuse()
        verdicts.append(verdict)
    failures = [verdict for verdict in verdicts if verdict.outcome == "FAIL"]
    for verdict in failures:
        say(f"FAIL  {_line(verdict)}")
    if not failures:
        subjects = dict.fromkeys(verdict.subject for verdict in verdicts)
        say(f"ok    {', '.join(subjects)}  all contract checks")
    return failures


def _write_broken(
    failures: Sequence[Verdict],
    names: tuple[str, str],
    as_json: Path | None,
    markdown: Path | None,
) -> None:
    """The files of a candidate that breaks its contract, and so was not run. names: as typed."""
    base, candidate = names
    if as_json is not None:
        body = {
            "outcome": BROKEN,
            "base": base,
            "candidate": candidate,
            "cells": [],
            "failures": [asdict(verdict) for verdict in failures],
        }
        write_text(as_json, json.dumps(body, indent=1) + "\n")
    if markdown is not None:
        lines = [f"- {escaped(_line(verdict))}" for verdict in failures]
        title = f"## {BROKEN}: {escaped(candidate)} against {escaped(base)}"
        why = "These contract checks fail, so it was not run."
        write_text(markdown, "\n\n".join([title, why, "\n".join(lines)]) + "\n")


def _line(verdict: Verdict) -> str:
    return f"{verdict.subject}  {verdict.check}: {verdict.reason}"
