"""How a plan is told."""

from __future__ import annotations

import pytest

from qbench.commands.planned import how_long
from tiny_runs import run_args


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 min"), (1620, "27 min"), (200_160, "55.6 h"), (43_718_400, "506 days")],
)
def test_a_long_time_is_told_in_hours_or_days(seconds, words):
    assert how_long(seconds) == words


def test_a_dry_run_tells_cells_of_several_calibrations_apart(command, tiny_folder, tmp_path):
    extra = ["--set", "calibration.samples=2,4", "--dry-run"]
    arguments = run_args(tiny_folder, tmp_path, "rtn,gptq", "2", extra, tasks=("wikitext",))
    shown = command(*arguments).out
    for size in ("2x32", "4x32"):
        assert f"gptq 2b g32 pydoc-calibration:{size} " in shown
    assert "rtn 2b g32  " in shown, "it calibrates with nothing"
    shown = command(*arguments, "--only", "*:4x32").out
    assert "1 cells" in shown and "gptq 2b g32 pydoc-calibration:4x32 " in shown
