"""The life of cells on a tiny local model: run, resume, fail, interrupt, report."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from qbench.commands import main
from qbench.errors import MethodError, ModelError
from qbench.experiment.single import require_origin
from qbench.experiment.store import read_records
from qbench.models.identity import resolved_revision
from qbench.models.source import find_model
from qbench.registry import method_class, parameters
from tiny_runs import run_args


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory, command):
    """One whole run: none, rtn, alternating, gptq at 2 and 4 bits."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    code, text, error = command(*run_args(tiny_folder, out))
    assert code == 0, text + error
    return out, text + error


def scores(record):
    return {(s.task, s.metric, s.filter): s.value for s in record.scores}


@pytest.mark.slow
def test_a_run_ends_with_records_a_table_and_a_page(finished):
    out, text = finished
    records, complaints = read_records(out)
    assert len(records) == 7 and not complaints and all(record.status == "ok" for record in records)
    for file in ("leaderboard.md", "leaderboard.csv", "index.html", "quality.png"):
        assert (out / file).stat().st_size > 500, file
    assert (
        "data  mini" in text and "plan  7 cells: 7 to run, 0 done" in text and "unquantized" in text
    )
    assert not (out / "reference").exists(), "the large files are gone"
    table = pd.read_csv(out / "leaderboard.csv")
    assert set(table.task) == {"mini-text", "mini-divergence", "mini-arc_easy", "mini-gsm8k"}


@pytest.mark.slow
def test_a_record_says_all_that_is_promised(finished):
    out, _ = finished
    body = json.loads(next((out / "records").glob("*.json")).read_text())
    keys = "schema id cell status reason scores bits_per_weight bytes_on_disk quantize_seconds "
    keys += "quantize_peak_bytes quantize_watched evaluate_seconds log evaluation environment "
    keys += "command latency judging checksum protocol parameters coverage warnings"
    assert set(keys.split()) == set(body)
    assert body["scores"][0].keys() >= {
        "task",
        "metric",
        "filter",
        "value",
        "stderr",
        "n",
        "higher_is_better",
        "samples",
    }
    facts = {
        "git_commit",
        "packages",
        "python",
        "platform",
        "hardware",
        "data",
        "seed",
        "device",
        "protocol",
    }
    assert facts <= body["environment"].keys()
    assert body["protocol"]["name"] == "quick, changed" and body["protocol"]["statement"]["tasks"]
    for score in body["scores"]:
        rows = [json.loads(line) for line in (out / score["samples"]).read_text().splitlines()]
        assert rows and all("doc_hash" in row or "prompt_hash" in row for row in rows)
        told = body["evaluation"][score["task"]]["samples_sha256"]
        assert hashlib.sha256((out / score["samples"]).read_bytes()).hexdigest() == told


@pytest.mark.slow
def test_quality_falls_with_the_bits_and_the_reference_is_its_own(finished):
    out, _ = finished
    records = {
        (r.cell.method, r.cell.scheme.bits if r.cell.scheme else None): r
        for r in read_records(out)[0]
    }
    kl = {
        key: scores(record)[("mini-divergence", "kl_mean", "none")]
        for key, record in records.items()
    }
    assert abs(kl[("none", None)]) < 1e-5
    for method in ("rtn", "alternating", "gptq"):
        assert kl[(method, 2)] > kl[(method, 4)] > 0
    gptq = records[("gptq", 4)]
    assert gptq.bits_per_weight["codes"] == 4.0 and gptq.environment["calibration_tokens"]
    assert gptq.bytes_on_disk and gptq.quantize_peak_bytes and gptq.quantize_seconds
    cards = [path.read_text() for path in out.rglob("README.md")]
    assert len(cards) == 6 and all(
        "## Scores" in card and "| mini-divergence | kl_mean |" in card for card in cards
    )
    assert all("model-index:" in card and "name: mini-divergence kl_mean" in card for card in cards)
    assert not list(out.rglob(".eval_results"))  # of stand-ins there are none


@pytest.mark.slow
def test_a_record_says_what_was_quantized_and_with_all_parameters(finished):
    for record in read_records(finished[0])[0]:
        assert record.parameters.keys() == parameters(method_class(record.cell.method)).keys()
        if record.cell.scheme is None:
            assert record.coverage == {}
            continue
        facts = record.coverage
        assert (facts["linear"], facts["blocks"], facts["quantized"]) == (15, 14, 14)
        assert facts["bits"] == {str(record.cell.scheme.bits): 14} and facts["left"] == []
        assert 0 < facts["bytes"] < facts["original_bytes"]
        assert not [c for c in record.warnings if c.kind in ("coverage", "size")]
        overlap = record.evaluation["mini-text"].get("overlap")
        assert (overlap is not None) == (record.cell.method == "gptq")
        assert record.evaluation["mini-gsm8k"]["max_gen_toks"] == 256


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_a_second_run_does_nothing_and_a_third_adds_a_method(
    finished, tiny_folder, command, tmp_path
):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    before = {path.name: path.read_bytes() for path in (out / "records").iterdir()}
    code, text, _ = command(*run_args(tiny_folder, out))
    assert code == 0 and "0 to run, 7 done" in text
    code, text, _ = command(*run_args(tiny_folder, out, methods="none,greedy"))
    assert code == 0 and "plan  3 cells: 2 to run, 1 done" in text
    assert (
        before.items()
        <= {path.name: path.read_bytes() for path in (out / "records").iterdir()}.items()
    )


def untimed(record, timings):
    """Without what a clock or the machine has measured."""
    evaluation = {
        task: {name: fact for name, fact in facts.items() if name != "seconds"}
        for task, facts in record.evaluation.items()
    }
    return record.model_copy(update={**timings, "evaluation": evaluation})


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_two_runs_give_the_same_codes_and_scores(finished, tiny_folder, command, tmp_path):
    out = tmp_path / "again"
    assert command(*run_args(tiny_folder, out, bits="4"))[0] == 0
    first, second = ({r.id: r for r in read_records(folder)[0]} for folder in (finished[0], out))
    assert len(second) == 4 and second.keys() < first.keys()
    timings = {
        "evaluate_seconds": None,
        "quantize_seconds": None,
        "quantize_peak_bytes": None,
        "bytes_on_disk": None,
    }
    for key in second:
        one_run, other_run = (untimed(records[key], timings) for records in (first, second))
        assert one_run == other_run
    for twin in (out / "artifacts").iterdir():
        folder = finished[0] / "artifacts" / twin.name
        assert (folder / "model.safetensors").read_bytes() == (
            twin / "model.safetensors"
        ).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_an_artifact_serves_other_tasks(finished, tiny_folder, command, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    before = inodes(out / "artifacts")
    extra = ["--set", "arc_easy.limit=6"]
    code, text, _ = command(*run_args(tiny_folder, out, methods="rtn", bits="4", extra=extra))
    assert code == 0 and "plan  1 cells: 1 to run" in text
    assert inodes(out / "artifacts") == before, "nothing was quantized again"


def inodes(folder):
    """What changes when a folder below this one is written again."""
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


FAILING = """
from dataclasses import dataclass
from qbench.methods.rtn import RTN

@dataclass(frozen=True)
class Failing(RTN):
    name = "failing"

    def quantize_weight(self, weight, scheme):
        if scheme.bits == 2:
            raise ValueError("two bits are too few")
        return super().quantize_weight(weight, scheme)
"""


@pytest.mark.usefixtures("without_pictures")
def test_a_failure_is_recorded_and_the_grid_goes_on(tiny_folder, command, tmp_path):
    plugin = tmp_path / "failing.py"
    plugin.write_text(FAILING)
    args = run_args(
        tiny_folder,
        tmp_path / "out",
        methods="failing",
        extra=["--plugin", plugin],
        tasks=["arc_easy"],
    )
    code, text, _ = command(*args)
    assert code == 1
    records = {r.cell.scheme.bits: r for r in read_records(tmp_path / "out")[0]}
    assert (records[2].status, records[4].status) == ("failed", "ok")
    assert (
        records[2].reason
        == "layer model.layers.0.self_attn.q_proj: ValueError: two bits are too few"
    )
    assert (
        "two bits are too few" in text
        and "two bits are too few" in (tmp_path / "out" / "index.html").read_text()
    )
    assert command(*args)[1].count("plan  2 cells: 1 to run, 1 done") == 1, (
        "what failed is tried again"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_an_interrupted_run_resumes(tiny_folder, command, tmp_path, monkeypatch):
    begun = []

    def interrupted(view, cell, position, cells):
        begun.append(cell)
        if len(begun) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("qbench.commands.progress.LiveView.begin", interrupted)
    learnt = []
    monkeypatch.setattr(
        "qbench.experiment.timings.learn", lambda cell, *_: learnt.append(cell.method)
    )
    args = run_args(
        tiny_folder, tmp_path / "out", methods="rtn,alternating", bits="4", tasks=["arc_easy"]
    )
    code, _, error = command(*args)
    assert code == 130 and "interrupted; everything finished is kept" in error
    assert not list((tmp_path / "out").rglob(".*")), "no partial file stays"
    assert learnt == ["rtn"], "what it took is known to later runs"
    monkeypatch.undo()
    code, text, _ = command(*args)
    assert code == 0 and "plan  2 cells: 1 to run, 1 done" in text


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_a_damaged_record_is_said_and_run_again(finished, tiny_folder, command, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    path = next((out / "records").glob("*.json"))
    path.write_text(path.read_text()[:100])
    code, text, error = command(*run_args(tiny_folder, out))
    assert code == 0 and f"record {path.name} is truncated" in error and "1 to run, 6 done" in text


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_report_needs_only_the_records(finished, command, tmp_path):
    shutil.copytree(finished[0] / "records", tmp_path / "run" / "records")
    code, text, _ = command("report", tmp_path / "run")
    assert code == 0 and "unquantized" in text and (tmp_path / "run" / "index.html").is_file()


def test_dry_run_shows_the_plan_and_writes_nothing(tiny_folder, command, tmp_path):
    code, text, _ = command(*run_args(tiny_folder, tmp_path / "out", extra=["--dry-run"]))
    assert code == 0 and "7 cells, about" in text and "gptq 2b g32" in text
    assert not (tmp_path / "out").exists()


def test_quantize_and_eval_one_model(tiny_folder, command, tmp_path):
    saved = tmp_path / "saved"
    settings = ["--samples", 4, "--length", 32, "--data", "mini", "--group-size", "channel"]
    code, text, _ = command(
        "quantize", "--model", tiny_folder, "--method", "gptq", "--bits", 3, "-o", saved, *settings
    )
    assert code == 0 and "bits/weight (codes 3.000" in text
    limits = ["--set", "arc_easy.limit=3", "--dtype", "float32"]
    code, text, _ = command("eval", saved, "--tasks", "arc_easy", "--data", "mini", *limits)
    assert code == 0 and "mini-arc_easy  gold_logprob  none" in text


def test_a_name_that_has_another_model_now_is_no_reference(tiny_folder):
    origin = find_model(str(tiny_folder))
    require_origin(origin, resolved_revision(origin), Path("saved"))
    require_origin(origin, None, Path("saved"))  # of an older version, which did not note it
    with pytest.raises(ModelError, match="saved was made from revision abc of .*--unquantized"):
        require_origin(origin, "abc", Path("saved"))


def test_eval_compares_with_the_model_that_is_named(tiny_folder, command, tmp_path):
    saved = tmp_path / "saved"
    command("quantize", "--model", tiny_folder, "--method", "rtn", "--bits", 3, "-o", saved)
    asked = ["--tasks", "divergence", "--data", "mini", "--dtype", "float32"]
    asked += ["--set", "divergence.length=64", "--set", "divergence.limit=2"]
    code, _, said = command("eval", saved, *asked)  # a folder is nobody else's name of a model
    assert code == 2 and "give --unquantized MODEL" in " ".join(said.split())
    code, text, _ = command("eval", saved, *asked, "--unquantized", tiny_folder)
    (line,) = [line for line in text.splitlines() if "kl_mean" in line]
    assert code == 0 and line.startswith("mini-divergence  kl_mean") and float(line.split()[3]) > 0
    code, text, _ = command("eval", tiny_folder, *asked, "--unquantized", tiny_folder)
    (line,) = [line for line in text.splitlines() if "top1_agreement" in line]
    assert code == 0 and line.split()[3] == "100.0"


@pytest.mark.slow
def test_a_run_keeps_the_texts_of_the_items_that_it_asked_once(finished):
    out, _ = finished
    records, _ = read_records(out)
    files = {path.name.partition("-")[2]: path for path in (out / "items").iterdir()}
    (arc,) = [path for name, path in files.items() if name.startswith("arc_easy-")]
    rows = [json.loads(line) for line in arc.read_text().splitlines()]
    kept = {row["item"]: row["fields"] for row in rows}
    (sample, *_) = (out / "samples").glob("*/mini-arc_easy.jsonl")
    asked = [json.loads(line)["doc_id"] for line in sample.read_text().splitlines()]
    assert list(kept) == [str(number) for number in asked]
    assert all(fields["question"] and len(fields["choices"]) > 1 for fields in kept.values())
    assert not [name for name in files if name.startswith(("text", "divergence"))]
    page = out / "cells" / f"{records[-1].id}.html"
    assert "The questions are not shown" not in page.read_text()


@pytest.mark.parametrize(
    "args, message",
    [
        (["run", "--model", "lama3-8b"], "unknown model 'lama3-8b'. Did you mean 'llama3-8b'"),
        (["run", "--methods", "gtpq"], "unknown method 'gtpq'. Did you mean 'gptq'"),
        (["run", "--tasks", "arc_eazy"], "unknown task 'arc_eazy'. Did you mean 'arc_easy'"),
        (["run", "--bits", "two"], "--bits 'two' is not a list of numbers"),
        (
            ["run", "--bits", "1", "--methods", "rtn"],
            "method 'rtn' supports 2 to 8 bits, not bits=1",
        ),
        (
            ["run", "--group-size", "huge"],
            "--group-size 'huge' is neither a number of inputs nor 'channel'",
        ),
        (["run", "--data", "/no/such/folder"], "'/no/such/folder' is no folder"),
        (["run", "--plugin", "/no/such.py"], "is not a file; give the path of a Python file"),
        (["run", "--preset", "fast"], "unknown preset 'fast'"),
        (["run", "--config", "/no/such.yaml"], "cannot be read"),
        (["run", "--nonsense"], "No such option: --nonsense"),
        (["run", "--methods", ""], "--methods '' names nothing; give a name, or leave it out"),
        (["run", "--tasks", ","], "--tasks ',' names nothing"),
        (["run", "--model", ""], "--model '' names nothing"),
        (["run", "--device", "gpu"], "unknown device 'gpu'"),
        (["run", "--device", "cuda:99"], "device 'cuda:99' is not there: torch"),
        (["run", "--set", "gptq.damp=-1"], "method 'gptq': damp=-1.0 is too small; give 0 or more"),
        (["run", "--set", "gtpq.damp=1"], "unknown name in --set 'gtpq'. Did you mean 'gptq'"),
        (
            ["run", "--tasks", "arc_easy", "--set", "arc_easy.length=5"],
            "--set arc_easy.length=5: the task 'arc_easy' has no 'length'",
        ),
        (
            ["run", "--tasks", "arc_easy", "--set", "arc_easy.limit=100000"],
            "--set arc_easy.limit=100000 is more than the",
        ),
        (
            ["run", "--tasks", "wikitext", "--set", "wikitext.limit=10000000"],
            "--set wikitext.limit=10000000 is more than the",
        ),
        (
            ["run", "--tasks", "wikitext", "--set", "wikitext.length=99999999"],
            "--set wikitext.length=99999999 is longer than the text that",
        ),
        (
            ["run", "--methods", "gptq", "--set", "calibration.samples=9999999999999"],
            "--set calibration: 9999999999999 samples of length 256 are more than the",
        ),
        (
            ["run", "--methods", "rtm"],
            "unknown method 'rtm'. Did you mean 'rtn'? `qbench list methods` lists what there is",
        ),
        (["run", "--time-limit", "0"], "time_limit=0.0: Input should be greater than 0"),
        (
            ["eval", "nowhere", "--data", "mini", "--set", "arc_eazy.limit=1"],
            "unknown name in --set 'arc_eazy'. Did you mean 'arc_easy'",
        ),
        (
            ["eval", "nowhere", "--data", "mini", "--set", "calibration.samples=1"],
            "unknown name in --set 'calibration'",
        ),
        (
            ["eval", "nowhere", "--data", "mini", "--set", "arc_easy.limit=1,2"],
            "--set arc_easy.limit has 2 values",
        ),
        (
            ["quantize", "--method", "gptq", "--bits", "3", "-o", "x", "--set", "gptq.damp=1,2"],
            "--set gptq.damp has 2 values, 1, 2; give one here",
        ),
        (
            ["quantize", "--method", "gptq", "--bits", "3", "-o", "x", "--set", "rtn.ratios=1"],
            "unknown name in --set 'rtn'. Available: gptq",
        ),
        (
            ["quantize", "--method", "rtn", "--bits", "3", "-o", "/dev/null/x"],
            "/dev/null/x cannot be written: /dev/null is no folder",
        ),
        (["run", "--trace", "/"], "/ cannot be written: it is a folder"),
        (["run", "--trace", "/dev/null/x"], "/dev/null is no folder that you can write to"),
        (
            ["latency", "--shapes", "8x8", "--json", "/dev/null/x"],
            "/dev/null/x cannot be written: /dev/null is no folder",
        ),
        (["latency", "--shapes", "8x8", "--plot", "/"], "/ cannot be written: it is a folder"),
        (["layers", "nowhere", "-o", "/dev/null"], "/dev/null/layers.json cannot be written"),
        (["compare", "a", "b", "--markdown", "/"], "/ cannot be written: it is a folder"),
        (
            ["regress", "rtn", "--base", "gptq", "--json", "/"],
            "/ cannot be written: it is a folder",
        ),
        (["export", "nowhere", "--to", "gguf", "-o", "/"], "/ cannot be written: it is a folder"),
        (["report", "/no/such/run"], "holds no records"),
        (["list", "kernals"], "unknown list 'kernals'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_misuse_is_one_sentence_and_exit_code_two(command, tiny_folder, args, message):
    model = [] if "--model" in args or args[0] != "run" else ["--model", tiny_folder]
    code, text, error = command(*args, *model)
    assert code == 2 and message in error and "Traceback" not in error + text
    assert error.count("\n") == 1


def test_an_output_that_is_there_is_refused_before_the_work(tiny_folder, command, monkeypatch):
    monkeypatch.setattr(
        "qbench.experiment.single.find_model", lambda *args: pytest.fail("work before the refusal")
    )
    args = ["quantize", "--model", tiny_folder, "--method", "rtn", "--bits", 3, "-o", tiny_folder]
    code, _, error = command(*args)
    assert code == 2 and "is there and was not written by qbench" in error


def test_a_model_that_is_named_beside_a_config_is_the_one_that_runs(command, tmp_path):
    (tmp_path / "grid.yaml").write_text("model: no-such-model\nmethods: [none]\n")
    args = ["run", "--config", tmp_path / "grid.yaml", "--dry-run", "--data", "mini"]
    assert "unknown model 'no-such-model'" in command(*args)[2]
    assert "no-such-model" not in command(*args, "--model", "smollm2-135m")[2]


def test_groups_that_do_not_divide_are_refused_before_any_work(tiny_folder, command, tmp_path):
    code, _, error = command(
        *run_args(tiny_folder, tmp_path / "out", methods="rtn", extra=["--group-size", "48"])
    )
    assert (
        code == 2
        and "group_size=48 does not divide the 64 inputs of model.layers.0.self_attn.q_proj"
        in error
    )
    assert "choose one of 16, 32, 64 or 'channel'" in error


def test_list_and_data(command):
    for what, name in (("methods", "alternating"), ("tasks", "gsm8k"), ("models", "llama3-70b")):
        code, text, _ = command("list", what)
        assert code == 0 and name in text
    code, text, _ = command("data", "list", "--data", "mini")
    assert code == 0 and "gsm8k" in text and "PSF-2.0" in text


@pytest.mark.slow
def test_check_a_method_of_ones_own(command, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FAILING.replace("scheme.bits == 2", "False"))
    code, text, _ = command("check", path)
    assert code == 0 and text.count("ok    failing") >= 9
    path.write_text(
        FAILING.replace("scheme.bits == 2", "weight.zero_() is None").replace(
            '"failing"', '"changing"'
        )
    )
    code, text, _ = command("check", path)
    assert code == 1 and "was changed in place" in text


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["qbench", "--debug", "run", "--model", "no-such-model"])
    with pytest.raises(Exception, match="unknown model"):
        main.main()


def test_method_errors_are_failures_and_not_misuse():
    assert MethodError.exit_code == 1


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_two_cells_at_a_time_end_as_one_after_the_other(finished, tiny_folder, command, tmp_path):
    out = tmp_path / "out"
    code, text, error = command(*run_args(tiny_folder, out, bits="4", extra=["--jobs", "2"]))
    assert code == 0, text + error
    assert "2 cells at a time" in text
    alone = {record.id: scores(record) for record in read_records(finished[0])[0]}
    for record in read_records(out)[0]:
        assert record.environment["hardware"]["threads"] == 1
        assert scores(record) == pytest.approx(alone[record.id], rel=1e-4, abs=1e-6)
