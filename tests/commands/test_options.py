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
        (("run", "--replicates", " "), "' '"),
        (("run", "--time-limit", "soon"), "'soon'"),
        ((*QUANTIZE, "--seed", "9223372036854775808"), "'9223372036854775808'"),
        (("layers", "--keep", "-1"), "'-1'"),
        (("check", "rtn", "--time-limit", "1s"), "'1s'"),
        (("check", "rtn", "--time-limit", "-1"), "'-1'"),
        (("check", "rtn", "--time-limit", "nan"), "'nan'"),
        (("check", "rtn", "--time-limit", "inf"), "'inf'"),
    ],
)
def test_a_wrong_value_is_told(command, arguments, value):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert f"Invalid value {value} for '{arguments[-2]}': Input should be " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, option, reason",
    [
        (("run", "--dry-run", "--trace", "t.json"), "--trace t.json", "with --dry-run"),
        (("layers", "saved", "--method", "gptq"), "--method gptq", "for saved"),
        (("layers", "saved", "--bits", "3"), "--bits 3", "for saved"),
        (("layers", "saved", "--group-size", "32"), "--group-size 32", "for saved"),
        (("layers", "saved", "--set", "rtn.clip=none"), "--set rtn.clip=none", "for saved"),
        (("layers", "saved", "--plugin", "mine.py"), "--plugin mine.py", "for saved"),
        (("compare", "a", "b", "--model", "nosuch"), "--model nosuch", "where no method's file"),
        (
            ("compare", "a.py", "b.py", "--baselines", "kept"),
            "--baselines kept",
            "where both methods are run",
        ),
        (("compare", "a.py", "b.py", "--look", "2/4"), "--look 2/4", "of two files"),
        (
            ("eval", "q", "--tasks", "wikitext", "--unquantized", "nosuch"),
            "--unquantized nosuch",
            "as none of wikitext compares with it",
        ),
        (
            ("eval", "q", "--through", "vllm", "--memory", "8GB"),
            "--memory 8GB",
            "with --through",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(command, arguments, option, reason):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"qbench: {option} does nothing") and reason in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("compare", "a", "b", "--baselines", "/nonexistent"), "--baselines /nonexistent is no"),
        (("compare", "a", "b", "--data", "nope"), "'nope'"),
        (("run", "--workers", "9" * 30), "workers"),
        (("run", "--workers", "100000000"), "workers=100000000: Input should be less than"),
        (("run", "--time-limit", "inf"), "time_limit=inf: Input should be less than"),
        (("run", "--time-limit", "1e300"), "time_limit=1e+300: Input should be less than"),
        ((*QUANTIZE, "--samples", "-9"), "Invalid value '-9' for '--samples'"),
        ((*QUANTIZE, "--length", "1"), "Invalid value '1' for '--length'"),
    ],
)
def test_wrong_values_are_refused_where_they_would_not_be_read(command, arguments, message):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_method_that_does_not_calibrate_is_said_to_take_no_sample(command, tmp_path):
    options = ("--samples", "64", "--seed", "5", "--data", "mini")
    code, _, err = command(*QUANTIZE[:-1], tmp_path / "new", *options)
    assert code == 2 and "nowhere" in err.splitlines()[-1]
    for option in ("--samples 64", "--seed 5", "--data mini"):
        assert f"warning: {option} does nothing, as rtn does not calibrate\n" in err
