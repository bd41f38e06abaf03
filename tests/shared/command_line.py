"""The command `qbench` in this process, on consoles that are 200 columns wide."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest

from qbench.commands import main


class Done(NamedTuple):
    """What a command leaves: its exit code and what it wrote."""

    code: int
    out: str
    err: str


def run_command(*arguments: object) -> Done:
    """Run `qbench ARGUMENTS`; it must end by leaving, as every command does."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setattr("sys.argv", ["qbench", *map(str, arguments)])
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as leaving,
        ):
            main.main()
    return Done(int(leaving.value.code or 0), out.getvalue(), err.getvalue())
