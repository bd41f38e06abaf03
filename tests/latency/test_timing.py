"""`qbench latency`, `qbench doctor`: candidates are checked, and a wrong request is a sentence."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pytest_benchmark.cli import main as pytest_benchmark

import qbench
from qbench import Scheme
from qbench.errors import ConfigError, DataError, QbenchError
from qbench.kernels import registry
from qbench.kernels.contract import Kernel, Prepared
from qbench.kernels.cpu import products as cpu
from qbench.kernels.gpu import products as gpu
from qbench.kernels.samples import random_binary
from qbench.latency import cpu as probes
from qbench.latency import request as asking
from qbench.latency import timing
from qbench.latency.candidates import kernel_candidate, repeated
from qbench.latency.peers import peers
from qbench.latency.request import check_request, shapes_of
from qbench.latency.timing import Candidate, Row, Shape, collect
from qbench.reports.roofline import roofline

needs_library = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f"CPU kernels: {cpu.unavailable()}"
)

PLUGIN = """
import torch
from qbench.kernels.contract import Kernel
from qbench.kernels.description import weight_from

def run(x, parts, bias, description):
    return x @ weight_from(parts, description).dequantize().T

KERNEL = Kernel("mine", run, dtypes=(torch.float32,))
"""


@pytest.fixture
def command(command):
    """The exit code, and stdout and stderr as one text."""

    def run(*args):
        code, out, err = command(*args)
        return code, out + err

    return run


@pytest.fixture
def peak_memory_once(monkeypatch):
    """Peak memory takes a process of five seconds for each variant: one is enough here."""
    run, results = subprocess.run, []

    def once(command, **options):
        if "qbench.latency.end_to_end" not in command:
            return run(command, **options)
        if not results:
            results.append(run(command, **options))
        return results[0]

    monkeypatch.setattr(subprocess, "run", once)


@pytest.mark.slow
@needs_library
def test_products_are_timed_against_dense_ones(command, tmp_path):
    options = ["--bits", "2,3", "--format", "binary,uniform", "--group-size", "32", "--rounds", "2"]
    code, text = command(
        "latency", "--shapes", "64x128", *options, "--json", str(tmp_path / "rows.json")
    )
    assert code == 0, text
    stored = json.loads((tmp_path / "rows.json").read_text())
    names = {row["name"] for row in stored["benchmarks"]}
    assert {
        "read",
        "multiply bf16",
        "dense fp32",
        "binary exact 2b fp32",
        "uniform fast 3b fp32",
    } <= names
    for row in stored["benchmarks"]:
        stats, facts = row["stats"], row["extra_info"]
        assert 0 < stats["min"] <= stats["q1"] <= stats["median"] <= stats["q3"] <= stats["max"]
        assert stats["rounds"] == len(stats["data"]) == 8 and facts["relative_error"] < 1e-2
    product = next(row for row in stored["benchmarks"] if row["name"] == "binary exact 2b fp32")[
        "extra_info"
    ]
    assert product["operations"] == 2 * 64 * 128 and product["shape"] == [64, 128, 1]
    assert all(
        name in text for name in names if "binary" in name or "uniform" in name or "dense" in name
    )


@pytest.mark.slow
@needs_library
def test_a_plugin_kernel_is_timed_without_an_edit(command, tmp_path, monkeypatch):
    known = dict(registry.all_kernels())
    monkeypatch.setattr(registry, "_known", known)
    plugin, file = tmp_path / "mine.py", tmp_path / "rows.json"
    plugin.write_text(PLUGIN)
    options = ["--bits", "3", "--group-size", "32", "--rounds", "2", "--plugin", str(plugin)]
    code, text = command("latency", "--shapes", "64x128", *options, "--json", str(file))
    assert code == 0, text
    facts = {row["name"]: row["extra_info"] for row in json.loads(file.read_text())["benchmarks"]}
    assert {"binary mine 3b fp32", "binary exact 3b bf16", "binary fast 3b fp32"} <= facts.keys()
    assert "binary mine 3b bf16" not in facts and "binary dequantized 3b fp32" not in facts
    # planes 64 x 128 x 3 bits, and 4 float16 scales and shifts for each of 64 x 4 groups
    assert facts["binary mine 3b fp32"]["weight_bytes"] == 64 * 128 * 3 // 8 + 64 * 4 * 4 * 2
    options += ["--kernels", "dequantized,triton", "--format", "uniform"]
    code, text = command("latency", "--shapes", "64x128", *options)
    assert code == 0 and "uniform dequantized 3b bf16" in text and "exact" not in text, text
    assert "not here  triton: device cpu is not one of cuda" in text


@needs_library
def test_a_kernel_that_raises_or_is_wrong_is_named(monkeypatch):
    def raises(x, parts, bias, description):
        raise RuntimeError("no")

    weight, x = random_binary((64, 128), 3, 32), torch.randn(2, 128)
    with pytest.raises(QbenchError, match="kernel 'mine' raised RuntimeError: no; `qbench check"):
        kernel_candidate(Kernel("mine", raises), weight, x, 3)
    zeros = Kernel("mine", lambda x, parts, bias, description: x.new_zeros(2, 64))
    with pytest.raises(QbenchError, match="binary mine 3b fp32 is wrong: relative error"):
        kernel_candidate(zeros, weight, x, 3).error()


def test_of_one_output_little_may_be_left_and_its_rounding_is_none_the_worse():
    x, weight = torch.ones(1, 64), torch.ones(1, 64, dtype=torch.float64)
    weight[0, 1::2] = -1
    weight[0, 0] += 1e-4  # what is left of 64 numbers of about 1
    for off, right in ((1e-6, True), (1e-3, False)):

        def run(x, off=off):
            return torch.full((1, 1), 1e-4 + off)

        candidate = repeated("one", lambda run=run: Prepared(run, 64), x, weight, 1e-5)
        if right:
            assert candidate.error() == pytest.approx(1e-2, rel=1e-3), "of what is left"
            continue
        with pytest.raises(QbenchError, match="error 0.000125, at most 1e-05 was expected"):
            candidate.error()


@needs_library
def test_a_group_may_be_a_whole_output_and_what_is_asked_twice_is_timed_once(command, tmp_path):
    file = tmp_path / "products.json"
    twice = [
        "--shapes",
        "8x96,8x96",
        "--bits",
        "3,3",
        "--batch",
        "1,1",
        "--format",
        "binary,binary",
    ]
    options = ["--group-size", "channel", "--rounds", "2", "--json", str(file)]
    code, text = command("latency", *twice, *options)
    assert code == 0, text
    rows = json.loads(file.read_text())["benchmarks"]
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names)) and "binary exact 3b fp32" in names
    (exact,) = [row["extra_info"] for row in rows if row["name"] == "binary exact 3b fp32"]
    # padded to 32 rows: 3 planes, and 4 float16 scales and shifts for each row
    assert exact["weight_bytes"] == 32 * (96 * 3 // 8 + 4 * 2)


@pytest.mark.slow
@needs_library
def test_timings_are_drawn_and_read_by_pytest_benchmark(command, tmp_path, monkeypatch, capsys):
    file, picture = tmp_path / "0001_timings.json", tmp_path / "roof.png"
    shapes = [
        "--shapes",
        "64x128,32x256",
        "--batch",
        "1,4",
        "--bits",
        "3",
        "--group-size",
        "64",
        "--rounds",
        "2",
    ]
    code, text = command("latency", *shapes, "--json", str(file), "--plot", str(picture))
    assert code == 0 and picture.read_bytes().startswith(b"\x89PNG"), text
    panels = roofline(json.loads(file.read_text())).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["64 x 128", "32 x 256"]
    drawn = {line.get_label(): line for line in panels[0].get_lines()}
    stored = [
        row
        for row in json.loads(file.read_text())["benchmarks"]
        if row["name"] == "binary exact 3b fp32"
    ]
    expected = [
        row["extra_info"]["operations"] / row["stats"]["median"] / 1e9 for row in stored[:2]
    ]
    assert drawn["binary exact 3b fp32"].get_ydata() == pytest.approx(expected)
    monkeypatch.setattr("sys.argv", ["pytest-benchmark", "compare", str(file)])
    pytest_benchmark()
    assert "binary exact 3b fp32" in capsys.readouterr().out


@pytest.mark.skipif(gpu.unavailable() is not None, reason=f"GPU kernels: {gpu.unavailable()}")
def test_a_gpu_is_timed_by_graphs(command, tmp_path):
    shapes = [
        "--shapes",
        "256x512",
        "--bits",
        "3",
        "--batch",
        "1,64",
        "--rounds",
        "3",
        "--device",
        "cuda",
    ]
    code, text = command(
        "latency", *shapes, "--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "a.png")
    )
    assert code == 0, text
    stored = {row["name"] for row in json.loads((tmp_path / "rows.json").read_text())["benchmarks"]}
    assert {"read", "multiply bf16", "dense bf16", "binary 3b bf16", "torch int4 bf16"} <= stored


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_none_is_timed(command):
    code, text = command("latency", "--shapes", "64x64", "--group-size", "32", "--device", "cuda")
    assert code == 2 and "device 'cuda' is not there" in text


def test_memory_is_read_a_piece_at_a_time_from_more_than_the_cache(monkeypatch):
    read = []
    functions = SimpleNamespace(
        bcq_prefer_huge_pages=lambda memory, nbytes: None,
        bcq_read=lambda piece, nbytes, isa, threads: read.append((piece, nbytes)),
    )
    monkeypatch.setattr(probes, "library", lambda: functions)
    monkeypatch.setattr(probes, "chosen_isa", lambda: 0)
    monkeypatch.setattr(timing, "cache_bytes", lambda: 8 << 20)
    reader = probes.reader()
    for copy in range(reader.copies):
        reader.run(copy)
    first = read[0][0]
    assert read == [(first + copy * reader.nbytes, reader.nbytes) for copy in range(reader.copies)]
    assert reader.nbytes <= 2 << 20 and len(read) * reader.nbytes == 16 << 20


def test_what_is_missing_at_a_shape_and_what_is_faster_than_memory(command, monkeypatch):
    def timed(shape, request, rounds, device, threads):
        names = ("read", "multiply bf16", "multiply fp32", "dense fp32", "dense bf16")
        rows = [Row(shape, "1 threads", name, 8, 100, 2, 0.0, (1.0, 1.0)) for name in names]
        rows[3] = replace(rows[3], times=(0.5, 0.5))
        missing = {"everywhere": "not installed"}
        if shape.columns == 160:
            missing["somewhere"] = "no such groups"
        return rows, missing

    monkeypatch.setattr("qbench.latency.request.time_shape", timed)
    code, text = command("latency", "--shapes", "64x160,64x128", "--group-size", "32")
    lines = text.splitlines()
    assert code == 0 and "not here  everywhere: not installed" in lines, text
    assert "not here  somewhere at 64x160, batch 1: no such groups" in lines
    cautions = [line for line in lines if line.startswith("caution  64x128, batch 1: dense fp32 ")]
    assert len(cautions) == 1 and "dense bf16" not in cautions[0]


@needs_library
def test_the_copies_that_are_read_cold_need_room(monkeypatch):
    monkeypatch.setattr(timing, "cache_bytes", lambda: 32 << 20)
    monkeypatch.setattr(asking, "_room", lambda place: 640 << 20)
    shape = [Shape(512, 1024)]
    # Beside the two dense products, two kernels in two dtypes: each with 64 MiB of copies.
    check_request(asking.Request(shape, [4], ["binary"], 128), "cpu")
    with pytest.raises(ConfigError, match=r"512x1024, batch 1: its products take at least 0.7 GB"):
        check_request(asking.Request(shape, [3, 4], ["binary"], 128), "cpu")
    check_request(asking.Request(shape, [3, 4], ["binary"], 128, ["cpu-binary"]), "cpu")


def test_torch_int4_tells_its_groups():
    _, missing = peers(Shape(64, 160))
    assert missing["torch int4"] == "its groups have 128 inputs, which do not divide 160"


def test_another_programs_failure_is_a_reason():
    def fails():
        raise RuntimeError("no such kernel\nat line 3")

    wrong = Candidate("wrong", 4, 8, 1, lambda i: torch.ones(2), torch.zeros(2).double() + 2, 0.1)
    found, missing = collect({"broken": fails, "other": lambda: [wrong]})
    assert (
        not found
        and missing["broken"] == "no such kernel"
        and missing["other"].startswith("wrong is wrong:")
    )


def test_there_must_be_timings_to_draw():
    with pytest.raises(DataError, match="qbench latency --json"):
        roofline({"benchmarks": []})


@pytest.mark.slow
@pytest.mark.usefixtures("peak_memory_once")
def test_a_saved_model_packed_against_dense(command, tiny, tmp_path):
    qbench.quantize(tiny(), "rtn", Scheme(3, 32)).save(tmp_path / "saved")
    options = ["--prompt", "4", "--tokens", "3", "--repeats", "1", "--device", "cpu", "--json"]
    options.append(str(tmp_path / "rows.json"))
    code, text = command("latency", "--end-to-end", str(tmp_path / "saved"), *options)
    assert code == 0 and "x dense in bfloat16" in text, text
    stored = json.loads((tmp_path / "rows.json").read_text())
    measured, rows = stored["measured"], stored["rows"]
    revision = measured.pop("revision")
    assert re.fullmatch("local-[0-9a-f]{12}", revision)
    asked = {"prompt": 4, "tokens": 3, "repeats": 1, "device": "cpu", "threads": 1}
    assert measured == {"model": "saved", "dtypes": ["bfloat16", "float32"]} | asked
    heading = (
        f"saved ({revision}), bfloat16, float32 on cpu, 1 thread: 4 tokens read and 3 written, "
        "1 times each"
    )
    assert heading in " ".join(text.split()), text
    assert str(tmp_path) not in json.dumps(stored)
    assert len(rows) == 4 and all(min(row["prefill"] + row["decode"]) > 0 for row in rows)
    assert all(bool(row["kernels"]) == row["name"].startswith("packed") for row in rows)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give either --shapes"),
        (["--shapes", "lama3-8b"], "unknown shape 'lama3-8b'. Did you mean 'llama3-8b'"),
        (["--shapes", "64x65", "--group-size", "65"], "must be multiples of 32"),
        (
            ["--shapes", "64x96", "--group-size", "64"],
            "group_size=64 does not divide the 96 inputs of 64x96, batch 1; choose one of 32, 96 "
            "or 'channel'",
        ),
        (["--shapes", "64x96", "--group-size", "wide"], "neither a number of inputs nor 'channel'"),
        (["--shapes", "64x64", "--group-size", "32", "--bits", "9"], "--bits 9 is outside 1..8"),
        (["--shapes", "64x64", "--batch", "0"], "there is nothing to time"),
        (["--shapes", "64x64", "--format", "ternary"], "unknown format 'ternary'"),
        (["--shapes", "64x64", "--rounds", "1"], "--rounds 1 is too small; give 2 or more"),
        (
            ["--shapes", "64x64", "--group-size", "32", "--tune"],
            "nothing can be tuned: there is no GPU",
        ),
        (
            ["--end-to-end", "nowhere", "--plot", "a.png"],
            "--plot a.png does nothing with --end-to-end; leave it out",
        ),
        (
            ["--shapes", "64x64", "--group-size", "32", "--device", "cud"],
            "unknown device 'cud'. Did you mean 'cuda'",
        ),
        (
            ["--end-to-end", "nowhere", "--device", "tpu"],
            "unknown device 'tpu'",
        ),
        (["--shapes", "64x64", "--group-size", "32", "--kernels", "x"], "unknown kernel 'x'"),
        (["--shapes", "64x64", "--plugin", "nowhere.py"], "'nowhere.py' is not a file"),
        (["--end-to-end", "nowhere"], "nowhere/config.json cannot be read"),
    ],
)
def test_a_wrong_request(command, arguments, message):
    code, text = command("latency", *arguments)
    assert code == 2 and message in " ".join(text.split()) and "Traceback" not in text


@pytest.mark.parametrize(
    "option, value",
    [
        ("--bits", "2"),
        ("--batch", "1"),
        ("--format", "uniform"),
        ("--group-size", "7"),
        ("--kernels", "nosuch"),
        ("--rounds", "5"),
        ("--plot", "a.png"),
    ],
)
def test_options_of_products_do_nothing_for_a_model(command, option, value):
    code, text = command("latency", "--end-to-end", "nowhere", option, value)
    assert code == 2 and f"{option} {value} does nothing with --end-to-end; leave it out" in text


@pytest.mark.parametrize("option", ["--prompt", "--tokens", "--repeats"])
def test_options_of_a_model_do_nothing_for_products(command, option):
    code, text = command("latency", "--shapes", "64x64", option, "5")
    assert code == 2 and f"{option} 5 does nothing with --shapes; leave it out" in text


@pytest.mark.parametrize("number", ["-1", "0", str(10**9), "9" * 30])
@pytest.mark.parametrize(
    "option", ["--rounds", "--threads", "--batch", "--bits", "--group-size", "--shapes"]
)
def test_no_number_of_products_ends_in_a_traceback(command, option, number):
    options = {"--shapes": "64x64", "--group-size": "32"}
    options[option] = f"{number}x64" if option == "--shapes" else number
    code, text = command("latency", *[word for pair in options.items() for word in pair])
    assert code == 2 and text.count("\n") == 1 and text.startswith("qbench: "), text


@pytest.mark.parametrize("option", ["--prompt", "--tokens"])
@pytest.mark.parametrize("number", ["-1", "0", "4096", "9" * 30])
def test_a_model_takes_so_many_tokens(command, tiny, tmp_path, option, number):
    qbench.quantize(tiny(), "rtn", Scheme(3, 32)).save(tmp_path / "saved")
    code, text = command("latency", "--end-to-end", tmp_path / "saved", option, number)
    assert code == 2 and f"{option} {number}" in text and "Traceback" not in text


def test_memory_that_runs_out_is_a_sentence(command, monkeypatch):
    def full(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

    monkeypatch.setattr("qbench.latency.request.time_shape", full)
    code, text = command("latency", "--shapes", "64x64", "--group-size", "32")
    assert code == 2 and "memory ran out (RuntimeError: DefaultCPU" in text


def test_shapes_of_models():
    assert shapes_of(["qwen3-8b", "7x9"], [1, 8])[-2:] == [Shape(7, 9, 1), Shape(7, 9, 8)]
    with pytest.raises(ConfigError, match="give OUTxIN"):
        shapes_of(["7by9"], [1])


def test_doctor_tells_what_there_is(command):
    code, text = command("doctor")
    assert code == 0 and "dequantized" in text and "torch=" in text and "triton" in text
