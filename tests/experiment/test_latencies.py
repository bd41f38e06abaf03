"""The latency of cells: beside the scores, shared, given to older records, and never in the way."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from isolated_functions import be_killed
from qbench.experiment.store import Store, read_records
from qbench.kernels import registry
from tiny_runs import empty_picture, run_args

TASKS = ("wikitext",)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)


@pytest.fixture(scope="module")
def run(tiny_folder, command, tmp_path_factory):
    """A function: the folder of a finished run with latency, and what it said."""

    def finished(out, methods="none,rtn,gptq,alternating", extra=("--latency",)):
        args = run_args(tiny_folder, out, methods, "3", extra, TASKS)
        code, text, error = command(*args)
        assert code == 0, text + error
        return text + error

    return finished


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", empty_picture)
        out = tmp_path_factory.mktemp("latency") / "tiny"
        return out, run(out)


def by_method(out):
    return {record.cell.method: record for record in read_records(out)[0]}


@pytest.mark.slow
def test_every_quantized_cell_has_a_latency_and_the_unquantized_one_has_none(finished):
    records = by_method(finished[0])
    assert records.pop("none").latency is None
    for record in records.values():
        latency = record.latency
        assert latency.reason is None and latency.threads and latency.device
        assert latency.rows == (1, 16, 512) and latency.dtype == record.cell.dtype
        shapes = {(p.out, p.columns): p.layers for p in latency.products if p.rows == 1}
        assert sum(shapes.values()) == 14, "seven layers in each of two blocks"
        for product in latency.products:
            for middle, low, high in (product.seconds, product.dense):
                assert 0 < low <= middle <= high
        packed, dense = latency.milliseconds(1)
        assert packed > 0 and dense > 0 and latency.milliseconds(7) is None
        rates = latency.decoding
        assert rates.packed[0] > 0 and rates.dense_prefill[0] > 0 and rates.dense_peak_bytes >= 0
    assert "latency" in finished[1]


@pytest.mark.slow
def test_cells_of_one_format_share_what_was_measured(finished):
    records = by_method(finished[0])
    assert records["rtn"].latency == records["gptq"].latency
    assert records["rtn"].latency != records["alternating"].latency
    kept = [json.loads(path.read_text()) for path in (finished[0] / "latency").iterdir()]
    models = [body for body in kept if body["facts"][0] == "model"]
    assert len(models) == 2, "one of each format"
    assert len(kept) == 2 + 2 * len(records["rtn"].latency.products)


@pytest.mark.slow
def test_tables_show_it(finished):
    out, _ = finished
    table = pd.read_csv(out / "leaderboard.csv")
    mine = table[table.task == "latency"]
    assert set(mine.method) == {"rtn", "gptq", "alternating"}
    assert {"batch_1_ms", "batch_1_speedup", "decode_tokens_per_second"} <= set(mine.metric)
    head = (out / "leaderboard.md").read_text().splitlines()
    assert any("batch 1 ms" in line and "tokens/s" in line for line in head)


@pytest.mark.slow
def test_a_record_without_latency_is_given_it_and_nothing_is_quantized_again(
    finished, run, tmp_path
):
    out = tmp_path / "run"
    run(out, "rtn,gptq", ())
    shutil.copytree(finished[0] / "latency", out / "latency")  # measured once is enough
    before = by_method(out)
    assert all(record.latency is None for record in before.values())
    shutil.rmtree(out / "artifacts" / before["gptq"].cell.artifact)
    said = run(out, "rtn,gptq")
    after = by_method(out)
    without = after["rtn"].model_copy(update={"latency": None})
    assert without == before["rtn"] and after["rtn"].latency.reason is None
    assert "to run, 2 done" in said
    # the model of the other is gone: its scores stay, and it says so
    assert after["gptq"].scores == before["gptq"].scores and after["gptq"].status == "ok"
    assert "is not there any more" in after["gptq"].latency.reason
    assert "not measured" in said


@pytest.mark.slow
def test_what_is_kept_is_measured_again_where_it_is_damaged(finished, run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    record = by_method(out)["rtn"]
    for path in (out / "latency").iterdir():
        text = path.read_text()
        if json.loads(text)["facts"][0] == "product":
            path.write_text(text[:-20])
    Store(out).add_latency(record.cell, record.latency.model_copy(update={"reason": "it failed"}))
    run(out, "none,rtn")
    again = by_method(out)["rtn"].latency
    assert again.reason is None and again.products != record.latency.products
    assert again.decoding == record.latency.decoding, "that of the model is whole"


@pytest.mark.slow
def test_a_latency_whose_process_was_killed_is_a_failure_of_the_run(
    finished, run, tiny_folder, command, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    record = by_method(out)["rtn"]
    Store(out).add_latency(record.cell, record.latency.model_copy(update={"reason": "it failed"}))
    monkeypatch.setattr("qbench.experiment.runner.measure", be_killed)
    code, said, error = command(*run_args(tiny_folder, out, "rtn", "3", ("--latency",), TASKS))
    assert code == 1 and "not measured: the cell ended the process by SIGKILL" in said
    told = f"the latency of {record.cell.model} rtn 3b g32 could not be measured"
    assert f"{told}; the same command tries" in error
    assert command(*run_args(tiny_folder, out, "rtn", "3", (), TASKS)).code == 0, "none is wanted"
    monkeypatch.undo()
    run(out, "rtn")
    assert by_method(out)["rtn"].latency == record.latency


KERNEL = """
from torch.nn.functional import linear
from qbench.kernels.contract import Kernel
from qbench.kernels.description import weight_from

def run(x, parts, bias, description):
    return linear(x, weight_from(parts, description).dequantize().to(x.dtype), bias)

KERNEL = Kernel("mine", run, automatic=True, priority=1000, error=1e-5)
"""


@pytest.mark.slow
def test_a_latency_is_measured_with_the_kernels_of_plugins(run, tmp_path, monkeypatch):
    """Also where the plug-in has nothing to do with the method of the cell."""
    monkeypatch.setattr("qbench.kernels.registry._known", None)
    monkeypatch.setattr("qbench.kernels.registry._origins", {})
    plugin = tmp_path / "my_kernel.py"
    plugin.write_text(KERNEL)
    try:
        run(tmp_path / "out", "rtn", ("--latency", "--plugin", str(plugin)))
    finally:
        registry.choose.cache_clear()
    latency = by_method(tmp_path / "out")["rtn"].latency
    assert latency.reason is None
    assert {product.kernel for product in latency.products} == {"mine"}


@pytest.mark.slow
def test_a_latency_is_measured_again_where_a_kernel_is_another(run, tmp_path, monkeypatch):
    """Also in a file that the plug-in imports; the scores stay, and so do the other latencies."""
    monkeypatch.setattr("qbench.kernels.registry._known", None)
    monkeypatch.setattr("qbench.kernels.registry._origins", {})
    plugin = tmp_path / "my_kernel.py"
    plugin.write_text(KERNEL.replace("from torch.nn.functional import", "from my_product import"))
    part = tmp_path / "my_product.py"
    seen = []
    try:
        for text in ("", "# one", "# another", "# another"):
            part.write_text(f"from torch.nn.functional import linear\n{text}\n")
            run(tmp_path / "out", "rtn", ("--latency", "--plugin", str(plugin)))
            seen.append(by_method(tmp_path / "out")["rtn"])
        shutil.rmtree(tmp_path / "out" / "artifacts")
        part.write_text("from torch.nn.functional import linear\n# a fourth\n")
        run(tmp_path / "out", "rtn", ("--latency", "--plugin", str(plugin)))
        assert by_method(tmp_path / "out")["rtn"] == seen[2], "a model that is gone keeps its times"
    finally:
        registry.choose.cache_clear()
    assert seen[0].latency.code != seen[1].latency.code != seen[2].latency.code
    assert seen[1].latency.products != seen[2].latency.products
    assert seen[3] == seen[2]
    assert len({record.scores for record in seen}) == 1
