"""A damaged artifact is found before it is read, said, and that one alone is made again."""

from __future__ import annotations

import shutil
import sys

import pytest

from places import ROOT
from qbench.contracts import Scheme
from qbench.errors import StoreError
from qbench.experiment import runner
from qbench.experiment.artifacts import check_artifact
from qbench.experiment.store import Store, read_records
from qbench.files.atomic import leftovers, remove
from qbench.quantization import quantize
from qbench.records import Cell
from tiny_plans import Silent, tiny_plan
from tiny_runs import empty_picture, run_args

sys.path.insert(0, str(ROOT / "benchmarks"))
from abuse import damage
from abuse.bench import table

sys.path.remove(str(ROOT / "benchmarks"))


def cell(bits):
    return Cell(
        model="m",
        revision="r",
        method="rtn",
        params={},
        source="0" * 12,
        scheme=Scheme(bits, 32),
        calibration=None,
        tasks=(),
        dtype="float32",
        seed=0,
    )


@pytest.fixture(scope="module")
def artifacts(tiny, tokenizer, tmp_path_factory):
    """Two artifacts as the runner writes them."""
    folder = tmp_path_factory.mktemp("artifacts")
    for bits in (3, 4):
        quantized = quantize(tiny(), "rtn", Scheme(bits, 32), tokenizer=tokenizer)
        quantized.manifest["costs"] = {"seconds": 1.0, "peak_bytes": 1}
        quantized.manifest["artifact"] = cell(bits).artifact
        quantized.save(folder / cell(bits).artifact)
    return folder


def test_a_whole_artifact_is_believed(artifacts):
    check_artifact(artifacts / cell(4).artifact, cell(4))


@pytest.mark.parametrize("name", damage.DAMAGES)
def test_every_damage_is_found_and_what_is_left_can_be_removed(artifacts, name, tmp_path):
    shutil.copytree(artifacts, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / cell(4).artifact
    damage.DAMAGES[name](folder)
    with pytest.raises(StoreError):
        check_artifact(folder, cell(4))
    remove(folder)
    assert not folder.exists()


def test_any_byte_that_changes_is_found(artifacts, tmp_path):
    shutil.copytree(artifacts, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / cell(4).artifact
    for place in (0.0, 0.3, 0.6, 1.0):
        damage.flip(folder / "model.safetensors", place)
        with pytest.raises(StoreError, match=r"model.safetensors differs from the hash"):
            check_artifact(folder, cell(4))
        damage.flip(folder / "model.safetensors", place)
    check_artifact(folder, cell(4))


@pytest.mark.slow
def test_a_damaged_artifact_alone_is_redone(tiny_folder, command, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)
    out = tmp_path / "out"
    assert command(*run_args(tiny_folder, out, "rtn", tasks=["wikitext"]))[0] == 0
    before = table(out)
    inodes = {path.name: path.stat().st_ino for path in (out / "artifacts").iterdir()}
    damaged, intact = (record.cell for record in read_records(out)[0])
    for record in (out / "records").iterdir():
        record.unlink()
    damage.flip(out / "artifacts" / damaged.artifact / "model.safetensors", 0.9)
    code, _, error = command(*run_args(tiny_folder, out, "rtn", tasks=["wikitext"]))
    assert code == 0 and table(out) == before
    assert error.count("this model is quantized again") == 1 and damaged.artifact in error
    assert (out / "artifacts" / intact.artifact).stat().st_ino == inodes[intact.artifact]


@pytest.mark.slow
def test_a_model_that_vanishes_at_work_fails_its_cell_and_the_grid_goes_on(
    tiny_folder, command, tmp_path, monkeypatch
):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)
    out = tmp_path / "out"
    worked_on = runner._Run._worked_on

    def and_removed(self, cell):
        outcome = worked_on(self, cell)
        if cell.scheme is not None and cell.scheme.bits == 3:
            shutil.rmtree(self.store.artifact(cell))
        return outcome

    with monkeypatch.context() as patched:
        patched.setattr(runner._Run, "_worked_on", and_removed)
        assert command(*run_args(tiny_folder, out, "rtn", "3,4", tasks=["wikitext"]))[0] == 1
    by_bits = {record.cell.scheme.bits: record for record in read_records(out)[0]}
    assert by_bits[4].status == "ok"
    assert "its model was removed" in by_bits[3].reason
    assert command(*run_args(tiny_folder, out, "rtn", "3,4", tasks=["wikitext"]))[0] == 0


def test_litter_is_what_a_killed_save_leaves_and_nothing_else(tmp_path):
    scratch = tmp_path / "artifacts" / ".model-abc_0123"
    (scratch / "model").mkdir(parents=True)
    (scratch / "model" / "config.json").write_text("{}")
    (tmp_path / ".model-abcdefgh" / "mine").mkdir(parents=True)  # holds another name
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".record.json-abcdefgh").write_text("")  # no directory
    assert leftovers(tmp_path) == [scratch]
    assert leftovers(tmp_path, seconds=3600) == []


def test_gc_shows_litter_and_removes_it_only_when_told(command, tmp_path):
    scratch = tmp_path / "records" / ".0123.json-abcdefgh"
    scratch.mkdir(parents=True)
    (scratch / "0123.json").write_text("half")
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "x.npy").write_bytes(bytes(2_000_000))
    code, text, _ = command("gc", tmp_path)
    assert code == 0 and "2 leftovers, 2.0 MB; --delete removes them" in text and scratch.exists()
    code, text, _ = command("gc", tmp_path, "--delete")
    assert code == 0 and text.count("removed") == 2
    assert not scratch.exists() and not (tmp_path / "reference").exists()
    assert "0 leftovers" in command("gc", tmp_path)[1]
    code, _, error = command("gc", tmp_path / "records")
    assert code == 2 and "holds no records" in error


@pytest.mark.slow
def test_a_model_whose_calibration_walked_in_smaller_batches_says_so_wherever_it_is_taken(
    tiny_folder, tmp_path
):
    flag = tmp_path / "memory-runs-out"
    flag.touch()
    plugin = tmp_path / "exhausting.py"
    plugin.write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nfrom typing import ClassVar\n"
        "from qbench.methods.rtn_h import RTNH\n\n\n"
        "@dataclass(frozen=True)\nclass Exhausting(RTNH):\n"
        '    name: ClassVar[str] = "exhausting"\n\n'
        "    def quantize_linear(self, weight, stats, scheme):\n"
        f"        flag = Path({str(flag)!r})\n"
        "        if flag.exists():\n"
        "            flag.unlink()\n"
        "            raise MemoryError\n"
        "        return super().quantize_linear(weight, stats, scheme)\n"
    )
    for length in ("64", "32"):
        asked = {"wikitext": {"length": (length,), "limit": ("2",)}}
        asked["calibration"] = {"samples": ("2",), "length": ("16",)}
        plan = tiny_plan(tiny_folder, "exhausting", bits=(3,), plugin=(plugin,), set=asked)
        (record,) = runner.run(plan, Store(tmp_path / "out"), Silent())
        assert record.status == "ok", record.reason
        texts = [caution.text for caution in record.warnings if caution.kind == "memory"]
        assert any("walked 4 samples at a time and not 8" in text for text in texts)
