"""`qbench latency` and `qbench doctor`: every candidate is checked and timed, and a wrong request is one sentence."""

from __future__ import annotations

import json

import pytest

import qbench
from qbench import Scheme, cli
from qbench.errors import ConfigError
from qbench.kernels import cpu
from qbench.latency import Shape
from qbench.shapes import shapes_of

needs_library = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"CPU kernels: {cpu.unavailable()}")


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*args):
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr("sys.argv", ["qbench", *args])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        captured = capsys.readouterr()
        return leaving.value.code, captured.out + captured.err

    return run


@needs_library
def test_products_are_timed_against_dense_ones(command, tmp_path):
    options = ["--bits", "2,3", "--format", "binary,uniform", "--group-size", "32", "--rounds", "2"]
    code, text = command("latency", "--shapes", "64x128", *options, "--json", str(tmp_path / "rows.json"))
    assert code == 0, text
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    names = {row["name"] for row in rows}
    assert {"read", "dense fp32", "dense bf16", "binary exact 2b fp32", "uniform fast 3b fp32"} <= names
    assert all(0 < row["low"] <= row["seconds"] <= row["high"] and row["error"] < 1e-2 for row in rows)
    assert all(name in text for name in names - {"read"})


def test_a_saved_model_packed_against_dense(command, tiny, tmp_path):
    qbench.quantize(tiny(), "rtn", Scheme(3, 32)).save(tmp_path / "saved")
    options = ["--prompt", "4", "--tokens", "3", "--repeats", "1", "--json", str(tmp_path / "rows.json")]
    code, text = command("latency", "--end-to-end", str(tmp_path / "saved"), *options)
    assert code == 0 and "x dense in bfloat16" in text
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == 4 and all(min(row["prefill"] + row["decode"]) > 0 for row in rows)
    assert all(bool(row["kernels"]) == row["name"].startswith("packed") for row in rows)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give either --shapes"),
        (["--shapes", "lama3-8b"], "unknown shape 'lama3-8b'. Did you mean 'llama3-8b'"),
        (["--shapes", "64x65", "--group-size", "65"], "must be multiples of 32"),
        (["--shapes", "64x96", "--group-size", "64"], "group_size=64 does not divide the 96 inputs"),
        (["--shapes", "64x64", "--group-size", "32", "--bits", "9"], "--bits 9 is outside 1..8"),
        (["--shapes", "64x64", "--batch", "0"], "there is nothing to time"),
        (["--shapes", "64x64", "--format", "ternary"], "unknown format 'ternary'"),
        (["--shapes", "64x64", "--rounds", "1"], "--rounds 1 is too small; give 2 or more"),
        (["--end-to-end", "nowhere"], "nowhere/config.json cannot be read"),
    ],
)
def test_a_wrong_request(command, arguments, message):
    code, text = command("latency", *arguments)
    assert code == 2 and message in " ".join(text.split()) and "Traceback" not in text


def test_shapes_of_models():
    assert shapes_of(["qwen3-8b", "7x9"], [1, 8])[-2:] == [Shape(7, 9, 1), Shape(7, 9, 8)]
    with pytest.raises(ConfigError, match="give OUTxIN"):
        shapes_of(["7by9"], [1])


def test_doctor_tells_what_there_is(command):
    code, text = command("doctor")
    assert code == 0 and "dequantized" in text and "torch=" in text and "triton" in text
