"""How a plan is told."""

from __future__ import annotations

import pytest

from qbench.commands.planned import how_long


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 min"), (1620, "27 min"), (200_160, "55.6 h"), (43_718_400, "506 days")],
)
def test_a_long_time_is_told_in_hours_or_days(seconds, words):
    assert how_long(seconds) == words
