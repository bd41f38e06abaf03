"""Every module of ours that a cell's numbers come of is in a hash of its id, or says why not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import house
from qbench.experiment.code_hashes import DIVIDING, JUDGING, QUANTIZING, code_hash
from qbench.experiment.identity import evaluation_hash, quantization_hash

# Modules and rooms that a cell's process imports, none of which changes a score or a weight.
CHANGES_NOTHING = {
    "checkpoint.card": "a text for people",
    "checkpoint.card_metadata": "a text for the hub",
    "checks.watch": "hands on what a plug-in gives, or refuses it",
    "comparison.cell_lint": "says what may be wrong with scores that are there",
    "declarations": "says what a method declares, which is in its source",
    "embedded": "makes a model whose files are hashed as any other's",
    "environment": "says what the machine is, which stands in the record",
    "errors": "has sentences",
    "experiment.artifacts": "believes a quantized model by the hashes of its files, or refuses it",
    "experiment.as_published": "says how many bits an unquantized model has",
    "experiment.at_work": "opens what the cell names, and refuses what is not the plan's",
    "experiment.coverage": "says which layers are quantized",
    "experiment.job": "holds the cell and where it is run",
    "experiment.plan": "is imported for a type alone",
    "external.environments": "makes environments of requirements, which are in a method's source",
    "external.packages": "finds files, which are in a method's source",
    "files.atomic": "writes the bytes that it is given",
    "files.ordinary": "gives the bytes that are there, or refuses them",
    "inspection": "counts the bits of what others wrote",
    "isolation": "starts processes",
    "kernels": "compute with packed weights; what is judged is dequantized",
    "method_source": "finds methods, whose source is hashed",
    "models.limits": "refuses",
    "models.provenance": "says where a model is from",
    "models.tokenizer_trial": "refuses",
    "plugin_file": "executes a plug-in's files, which are in its source, as they are",
    "plugin_sources": "finds them",
    "records": "holds what ids are made of",
    "weight_range": "refuses",
}
# What the code that judges imports, and only quantizing calls, or reading what is quantized: ids of
# such cells hold the hash of that.
OF_QUANTIZED_MODELS = {
    "calibration.block_window",
    "calibration.input_statistics",
    "checkpoint.block_files",
    "checkpoint.config",
    "checkpoint.folder",
    "checkpoint.packed_linear",
    "checkpoint.skeleton",
    "contracts",
    "experiment.back_off",  # its smaller batches change the last digits, and a caution says so
    "files.codes",
    "files.model_folder",
    "quantization",
}


def files_of(names: Iterable[str], monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """What is read for the hash of this code."""
    real = Path.read_bytes
    read: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: (read.append(path), real(path))[1])
        code_hash(names)
    return {path.resolve() for path in read}


def left_out(starts: Iterable[str], hashed: set[Path]) -> dict[str, str]:
    """The modules in no hash that are imported from these on, each with the one that imports it.

    What these import themselves is not asked.
    """
    known = {name for name, path in house.modules().items() if path in hashed}
    importer = {f"qbench.{start}": "" for start in starts}
    waiting = list(importer)
    while waiting:
        module = waiting.pop()
        if module not in known:
            continue
        for name in house.imported_by(module):
            if name not in importer:
                importer[name] = module
                waiting.append(name)
    return {name: by for name, by in importer.items() if name not in known}


def reason_for(module: str) -> str:
    """The name of CHANGES_NOTHING that a module goes by, empty where there is none."""
    name = module.removeprefix("qbench.")
    return next((key for key in (name, name.partition(".")[0]) if key in CHANGES_NOTHING), "")


def test_what_the_process_of_a_cell_imports_is_hashed_or_changes_no_number(monkeypatch):
    hashed = files_of((*QUANTIZING, *DIVIDING, *JUDGING), monkeypatch)
    missing = left_out(["experiment.cell_process"], hashed)
    assert {name: by for name, by in missing.items() if not reason_for(name)} == {}
    unneeded = CHANGES_NOTHING.keys() - {reason_for(name) for name in missing}
    assert not unneeded, "a reason that no module needs is taken out"


@pytest.mark.parametrize(
    "starts, names, besides",
    [
        (("quantization", "experiment.foreign_cell"), (*QUANTIZING, *DIVIDING), set()),
        (("experiment.evaluation", "experiment.memory"), JUDGING, OF_QUANTIZED_MODELS),
    ],
)
def test_what_quantizes_and_what_judges_is_hashed_by_itself(starts, names, besides, monkeypatch):
    missing = left_out(starts, files_of(names, monkeypatch))
    unsaid = {name: by for name, by in missing.items() if not reason_for(name)}
    assert {name.removeprefix("qbench.") for name in unsaid} == besides


@pytest.mark.parametrize(
    "edited, differ",
    [
        ("scheme.py", (True, False)),
        ("verbs.py", (True, False)),
        ("blocks.py", (True, True)),
        ("loading.py", (True, True)),
        ("packed_linear.py", (True, False)),
        ("snapping.py", (True, False)),
        ("judging.py", (False, True)),
        ("card.py", (False, False)),
    ],
)
def test_an_edit_makes_other_cells_of_what_it_may_change(edited, differ, monkeypatch):
    hashes: list[Callable[[], str]] = [quantization_hash, lambda: evaluation_hash({})]
    before = [made() for made in hashes]
    real = Path.read_bytes
    more = {edited: b"# more\n"}
    monkeypatch.setattr(Path, "read_bytes", lambda path: real(path) + more.get(path.name, b""))
    assert tuple(made() != known for made, known in zip(hashes, before, strict=True)) == differ
