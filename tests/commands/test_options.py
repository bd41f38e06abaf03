"""What is typed behind a command: wrong values are told with their values, and none is ignored."""

from __future__ import annotations

import pytest

QUANTIZE = ("quantize", "--model", "nowhere", "--method", "rtn", "--bits", "3", "-o", "new")


@pytest.mark.parametrize(
    "arguments, value",
    [
        (("run", "--max-cells", "many"), "'many'"),
        (("run", "--head-bits", "1.5"), "'1.5'"),
        (("run", "--seed", "x\x1b[0m"), "'x\\x1b[0m'"),
        (("run", "--replicates", ""), "''"),
        (("run", "--time-limit", "soon"), "'soon'"),
        ((*QUANTIZE, "--seed", "9223372036854775808"), "'9223372036854775808'"),
        (("layers", "--keep", "-1"), "'-1'"),
        (("check", "rtn", "--time-limit", "1s"), "'1s'"),
    ],
)
def test_a_wrong_value_is_told(command, arguments, value):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert f"Invalid value {value} for '{arguments[-2]}': Input should be " in err
    assert err.count("\n") == 1
