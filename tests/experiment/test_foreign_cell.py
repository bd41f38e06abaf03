"""Cells of other packages: what they write is read exactly, and whatever they do is data."""

from __future__ import annotations

import json
import runpy
import time

import pytest
import torch

from command_line import run_command
from fake_environments import FAKE, pretend
from places import ROOT
from qbench.contracts import Scheme
from qbench.errors import ConfigError, MethodError, ModelError
from qbench.experiment.foreign_cell import (
    SCRATCH,
    as_written,
    quantize_elsewhere,
    require_environment,
)
from qbench.experiment.store import read_records
from qbench.external.packages import protocol, worker
from qbench.files.atomic import leftovers
from qbench.formats import Dense, Uniform
from qbench.methods.external.workers.worker_files import Work, older_folder
from qbench.models.blocks import quantizable, read_weight
from qbench.models.source import ModelSource, find_model
from qbench.plugin_file import import_plugin_file
from qbench.quantization import QuantizedModel, check_layers, quantize
from qbench.registry import declared, get_method, load_plugin, source_hash
from qbench.registry import external as external_methods
from samples import token_ids
from tiny_runs import run_args

SCHEME = Scheme(4, 16)
EARLY = ("raises", "exits", "killed", "silent", "hangs")  # what ends before it reads its tokens


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Quantizes a tiny folder by the fake package, told `how`."""
    monkeypatch.setenv("QBENCH_ENVS", str(tmp_path / "environments"))
    load_plugin(FAKE)
    pretend(get_method("fake").package, tmp_path / "environments")
    place = tmp_path / "run"
    place.mkdir()

    def run(how, model, tokens=None, waiting=lambda: None):
        method = get_method("fake", how=how)
        if tokens is None and how not in EARLY:
            tokens = token_ids(vocabulary=256)
        try:
            return quantize_elsewhere(
                method, "fake", SCHEME, find_model(str(model)), tokens, place,
                device="cpu", threads=1, waiting=waiting,
            )  # fmt: skip
        finally:
            assert not list(place.iterdir()), "what was handed over goes"

    return run


@pytest.mark.slow
@pytest.mark.parametrize("how, kind", [("codes", Uniform), ("dequantized", Dense)])
def test_what_a_package_writes_is_what_is_evaluated(fake, tiny_folder, how, kind):
    quantized = fake(how, tiny_folder)
    layers = quantizable(quantized.model)
    assert quantized.weights.keys() == layers.keys()
    for name, weight in quantized.weights.items():
        assert isinstance(weight, kind)
        assert torch.equal(weight.dequantize(), read_weight(layers[name]))
    written = quantized.manifest["written"]
    assert written["read"] == how and written["largest_difference"] <= 2**-8
    assert written["packages"] == ["fake==1"] and written["bytes"] > 0
    assert quantized.manifest["costs"]["seconds"] > 0 < quantized.manifest["costs"]["peak_bytes"]
    assert quantized.manifest["calibration"]["tokens"] == [5, 16]


FAULTS_OF_PROCESSES = {
    "raises": r"exit code 1; it last said: RuntimeError: no kernel for this machine",
    "exits": r"fake ended with exit code 3",
    "killed": r"fake was ended by SIGKILL, as the system does where memory runs out",
    "silent": r"ended without a word",
}
FAULTS_OF_FILES = {
    "nothing": r"wrote no checkpoint",
    "other layout": r"differs from its own by .* so its layout is not the one that is known",
    "other shape": r"the model has the shape",
    "transposed": r"the model has the shape",
    "not finite": r"not finite|differs from its own",
    "more bits": r"which 4 bits do not hold",
    "other names": r"the model has no such layer",
    "damaged": r"dequantized.safetensors cannot be read",
}


@pytest.mark.parametrize("how", FAULTS_OF_PROCESSES)
def test_every_end_of_a_worker_is_a_reason(fake, tiny_folder, how):
    with pytest.raises(MethodError, match=FAULTS_OF_PROCESSES[how]):
        fake(how, tiny_folder)


@pytest.fixture
def in_this_process(monkeypatch):
    """Workers are run here, as their own interpreters take seconds to import torch."""

    def run_here(package, place, said, threads, waiting):
        said.touch()
        monkeypatch.setattr("sys.argv", ["worker", str(place / "order.json")])
        runpy.run_path(str(worker(package)), run_name="__main__")
        return 0

    monkeypatch.syspath_prepend(str(protocol().parent))
    monkeypatch.setattr("qbench.external.work._run", run_here)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("how", FAULTS_OF_FILES)
def test_every_fault_of_what_a_worker_writes_is_a_reason(fake, tiny_folder, how):
    with pytest.raises(MethodError, match=FAULTS_OF_FILES[how]):
        fake(how, tiny_folder)


def test_a_worker_that_hangs_ends_with_who_waits(fake, tiny_folder):
    started = time.monotonic()

    def waiting():
        if time.monotonic() - started > 1:
            raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        fake("hangs", tiny_folder, waiting=waiting)


def test_what_a_killed_cell_has_left_is_litter(tmp_path):
    scratch = tmp_path / f".{SCRATCH}-abcdefgh" / SCRATCH
    scratch.mkdir(parents=True)
    assert leftovers(tmp_path) == [scratch.parent]


def test_a_model_that_is_no_folder_is_refused(fake, tmp_path):
    method = get_method("fake")
    with pytest.raises(ModelError, match="is none"):
        quantize_elsewhere(
            method, "fake", SCHEME, ModelSource("m", str(tmp_path), None, True, gguf="m.gguf"),
            None, tmp_path / "run", device="cpu", threads=1, waiting=lambda: None,
        )  # fmt: skip


def test_groups_that_a_package_does_not_offer(fake):
    with pytest.raises(ConfigError, match=r"group_size=8 .* \(16, 32\)"):
        get_method("fake").worker_settings(Scheme(4, 8))


def test_a_worker_is_part_of_the_identity_of_its_cells(tmp_path, monkeypatch):
    folder = tmp_path / "package"
    (folder / "workers").mkdir(parents=True)
    for name in ("fake.py", "fake.txt", "workers/fake_worker.py"):
        text = (FAKE.parent / name).read_text().replace('"fake"', '"fake-copy"', 2)
        (folder / name.replace("fake.txt", "fake-copy.txt")).write_text(text)
    module = import_plugin_file(folder / "fake.py")
    before = source_hash(module.Fake)
    for name in ("fake-copy.txt", "workers/fake_worker.py"):
        with (folder / name).open("a") as file:
            file.write("# more\n")
        after = source_hash(module.Fake)
        assert after != before
        before = after


def test_another_package_does_not_quantize_in_this_process(tiny):
    with pytest.raises(ConfigError, match="its package's own environment"):
        quantize(tiny(), "hqq", SCHEME)


def test_a_format_with_its_own_groups_has_cells_of_its_own_bits():
    assert declared("gguf:q4_k").group == 32
    grid = _grid(methods=("gguf:q4_k", "hqq"), bits=(2, 3, 4), group_size=64)
    assert grid.schemes("gguf:q4_k") == [Scheme(4, 32)]
    assert grid.schemes("hqq") == [Scheme(2, 64), Scheme(3, 64), Scheme(4, 64)]
    grid = _grid(methods=("gguf:q4_k",), bits=(8,))
    assert grid.schemes("gguf:q4_k") == [Scheme(8, 32)]  # which is refused with the reason


def _grid(**settings):
    from qbench.experiment.grid import Grid

    return Grid(**settings)


def test_the_bits_of_dequantized_weights_are_those_of_the_files():
    written = {"read": "gguf", "bytes": 5, "code_bits": 4.1249}

    quantized = QuantizedModel(None, None, dict.fromkeys("ab"), {"written": written})
    counted = {"bytes": 9, "bits": {}, "blocks": 3, "quantized": 0, "left": ["a", "b", "c"]}
    facts = as_written(counted, quantized)
    assert facts == {
        "bytes": 5,
        "bits": {"4.12": 2},
        "blocks": 3,
        "quantized": 2,
        "left": ["c"],
    }


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_a_grid_goes_on_beside_packages_that_fail(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("QBENCH_ENVS", str(tmp_path / "environments"))
    load_plugin(FAKE)
    pretend(get_method("fake").package, tmp_path / "environments")
    out = tmp_path / "out"
    # What hangs has a run of its own, as the others are not done within seconds everywhere.
    for methods, more in (
        ("rtn,fake,hqq", ["--set", "fake.how=codes,raises"]),
        ("fake", ["--set", "fake.how=hangs", "--time-limit", "20"]),
    ):
        more = ["--plugin", FAKE, *more]
        done = run_command(*run_args(tiny_folder, out, methods, "4", more, tasks=("divergence",)))
        assert done.code == 1
    records = {}
    for record in read_records(out)[0]:
        records[record.cell.method, record.cell.params.get("how")] = record
    assert records["rtn", None].status == "ok"
    fine = records["fake", None]
    assert fine.status == "ok", fine.reason
    assert fine.quantize_seconds > 0
    assert fine.environment["external"]["packages"] == ["fake==1"]
    assert fine.environment["calibration_tokens"]
    assert "no kernel for this machine" in records["fake", "raises"].reason
    assert "was not done within" in records["fake", "hangs"].reason
    skipped = records["hqq", None]
    assert skipped.status == "skipped" and "qbench env create hqq" in skipped.reason


NOT_OFFERED = ("aqlm", "quip-sharp", "exl3", "gguf:q3_k_m", "gguf:q4_k_m", "gguf:iq2_xs")


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_cannot_be_run_says_what_to_take(name):
    with pytest.raises(ConfigError, match="take"):
        require_environment(name)


def test_a_grid_goes_on_beside_what_is_not_offered(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("QBENCH_ENVS", str(tmp_path / "environments"))
    methods = "none,rtn,torchao,quanto,auto-gptq,autoawq,exl3,gguf:q4_k_m"
    arguments = run_args(
        tiny_folder, tmp_path / "out", methods, "4", ["--dry-run"], tasks=("divergence",)
    )
    done = run_command(*arguments)
    assert done.code == 0, done.err
    for reason in ("env create torchao", "env create autoawq", "CUDA alone", "llama-quantize"):
        assert reason in " ".join(done.out.split())


def test_groups_of_a_package_that_fits_them_to_a_row(tiny):
    model = tiny(hidden_size=64)
    check_layers(model, get_method("quanto"), Scheme(4, 128))
    with pytest.raises(ConfigError, match="128"):
        check_layers(model, get_method("rtn"), Scheme(4, 128))
    with pytest.raises(ConfigError, match=r"bits=3 .* \(2, 4\)"):
        get_method("quanto").worker_settings(Scheme(3, 128))


def test_a_folder_for_an_older_transformers(tmp_path):
    source, output = tmp_path / "model", tmp_path / "work" / "output"
    source.mkdir()
    output.mkdir(parents=True)
    (source / "model.safetensors").write_bytes(b"weights")
    rotary = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}
    (source / "config.json").write_text(json.dumps({"a": 1, "rope_parameters": rotary}))
    older = older_folder(Work(str(source), output, {}, "cpu", 1))
    assert json.loads((older / "config.json").read_text()) == {
        "a": 1, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    }  # fmt: skip
    assert (older / "model.safetensors").read_bytes() == b"weights"
    assert "rope_parameters" in (source / "config.json").read_text()
    (source / "config.json").write_text(json.dumps({"rope_parameters": {"full": rotary}}))
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="by layer"):
        older_folder(Work(str(source), tmp_path / "other" / "output", {}, "cpu", 1))


def test_the_folder_of_other_packages_is_read_without_them():
    named = {"hqq", "bitsandbytes:nf4", "gguf:q4_k", "torchao", "quanto", "auto-gptq", "autoawq"}
    assert named | set(NOT_OFFERED) <= external_methods().keys()
    assert (ROOT / "methods" / "external" / "hqq.txt").is_file()
