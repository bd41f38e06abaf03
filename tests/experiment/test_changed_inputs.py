"""What changes between the plan and a cell fails the cell, and leaves nothing that others take."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from unittest.mock import patch

import numpy as np
import pytest
import yaml

from fresh_python import run_python
from qbench import plugin_file
from qbench.errors import ConfigError
from qbench.experiment.identity import evaluation_hash
from qbench.experiment.runner import run
from qbench.experiment.store import Store
from qbench.experiment.task_identity import task_hash
from qbench.models.identity import resolved_revision
from qbench.models.loading import load_model
from qbench.models.source import find_model
from qbench.plugin_file import import_plugin_file
from qbench.plugin_sources import named_files, own_sources
from qbench.quantization import quantize
from qbench.registry import load_plugin, method_class, source_hash
from qbench.scheme import Scheme
from qbench.tasks import registry as tasks
from qbench.tasks.data import CALIBRATION, table
from qbench.tasks.folder import write_parquet
from qbench.tasks.perplexity import Perplexity
from tiny_plans import Silent, tiny_plan

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from qbench.methods.rtn_h import RTNH

@dataclass(frozen=True)
class Mine(RTNH):
    name: ClassVar[str] = "mine"
"""
HALVED = """
from transformers import LlamaForCausalLM

class Halved(LlamaForCausalLM):
    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        output.logits = output.logits / 2
        return output
"""


def write_data(folder: Path, word: str) -> None:
    """Texts for the calibration and for windows, of one word."""
    for name in (CALIBRATION, "wikitext"):
        declared = table(name)
        for split in declared.splits:
            rows = [{"text": f"{word} {number} of the text " * 20} for number in range(40)]
            write_parquet(rows, folder / declared.folder / f"{split}.parquet")


def edit(path: Path) -> None:
    """Change the file's last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.fixture
def places(tiny_folder: Path, tmp_path: Path) -> dict[str, Path]:
    """A model, data and a plug-in of one's own, each with what changes it."""
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    write_data(tmp_path / "data", "first")
    return {"model": model, "data": tmp_path / "data", "plugin": plugin}


CHANGES: dict[str, Callable[[dict[str, Path]], None]] = {
    "model": lambda places: edit(places["model"] / "model.safetensors"),
    "data": lambda places: write_data(places["data"], "other"),
    "plugin": lambda places: places["plugin"].write_text(f"{PLUGIN}# edited\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHANGES)
def test_a_cell_of_changed_files_fails_and_stores_nothing(kind, places, tmp_path):
    asked = {"wikitext": {"length": ("64",), "limit": ("2",)}}
    asked["divergence"] = asked["wikitext"]
    asked["calibration"] = {"samples": ("2",), "length": ("16",)}
    plan = tiny_plan(
        places["model"],
        "mine",
        bits=(3,),
        plugin=(places["plugin"],),
        data=str(places["data"]),
        tasks=("wikitext", "divergence"),
        set=asked,
    )
    CHANGES[kind](places)
    store = Store(tmp_path / "out")
    (record,) = run(plan, store, Silent())
    assert record.status == "failed"
    assert "changed since this run was planned; give the same command again" in record.reason
    assert not list(store.folder.glob("artifacts/*"))
    assert not list(store.folder.glob("reference/*"))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["wikitext", "divergence"])
def test_texts_that_change_are_seen_after_they_are_read(task, places, tmp_path):
    asked = {task: {"length": ("64",), "limit": ("2",)}}
    changes = {"bits": (3,), "tasks": (task,), "set": asked, "data": str(places["data"])}
    plan = tiny_plan(places["model"], "rtn", **changes)
    CHANGES["data"](places)
    store = Store(tmp_path / "out")
    (record,) = run(plan, store, Silent())
    assert f"the data of {task} in {places['data']} have changed" in record.reason
    assert not list(store.folder.glob("reference/*")) and not list(store.folder.glob("samples/*/*"))


@pytest.mark.slow
def test_a_cell_of_an_edited_task_fails(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_loaded", {})
    facts = yaml.safe_load((Path(tasks.__file__).parent / "arc_easy.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(facts | {"name": "mine", "table": "arc_easy"}))
    asked = {"tasks": ("mine",), "set": {"mine": {"limit": ("2",)}}}
    plan = tiny_plan(tiny_folder, "none", plugin=(path,), **asked)
    store = Store(tmp_path / "out")
    path.write_text(path.read_text() + "batch_size: 3\n")
    (record,) = run(plan, store, Silent())
    assert record.status == "failed"
    assert "the files of task 'mine' have changed since this run was planned" in record.reason


@pytest.mark.slow
def test_a_reference_of_another_model_is_removed(places, tmp_path):
    asked = {"divergence": {"length": ("64",), "limit": ("2",)}}
    changes = {"bits": (3,), "tasks": ("divergence",), "set": asked, "data": str(places["data"])}
    plan = tiny_plan(places["model"], "none", **changes)
    edit(places["model"] / "model.safetensors")
    store = Store(tmp_path / "out")
    (record,) = run(plan, store, Silent())
    assert "its files have changed" in record.reason
    assert not list(store.folder.glob("reference/*.npy"))


def test_what_a_plugin_imports_beside_it_is_part_of_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("factor_beside.py", "beside/__init__.py", "beside/other.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("FACTOR = 1\n")
    plugin = tmp_path / "with_factor.py"
    named = PLUGIN.replace('"mine"', '"with-factor"')
    plugin.write_text(f"import beside, factor_beside\n{named}")
    try:
        load_plugin(plugin)
        cls = method_class("with-factor")
        before = source_hash(cls)
        importlib.import_module("beside.other")
        assert source_hash(cls) == before, "whatever else the process has imported"
        (tmp_path / "factor_beside.py").write_text("FACTOR = 2\n")
        assert source_hash(cls) != before
    finally:
        for name in ("factor_beside", "beside", "beside.other"):
            sys.modules.pop(name, None)


def test_a_plugin_whose_name_has_dots_has_what_is_beside_it(tmp_path):
    (tmp_path / "beside_dots.py").write_text("FACTOR = 1\n")
    plugin = tmp_path / "with.dots.py"
    plugin.write_text(f"import beside_dots\n{PLUGIN.replace('mine', 'with-dots')}")
    load_plugin(plugin)
    before = source_hash(method_class("with-dots"))
    (tmp_path / "beside_dots.py").write_text("FACTOR = 2\n")
    assert source_hash(method_class("with-dots")) != before


@patch.dict(sys.modules)
def test_what_a_plugin_does_not_import_is_no_module_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(plugin_file._finder, "folders", {})
    for name in ("imported_beside", "wave", "sched"):
        sys.modules.pop(name, None)
        (tmp_path / f"{name}.py").write_text("BESIDE = True\n")
    (tmp_path / "inner_beside").mkdir()
    (tmp_path / "inner_beside" / "part.py").write_text("import imported_beside\n")
    plugin = tmp_path / "importing.py"
    plugin.write_text("def late():\n    import sched\n    return sched\nimport inner_beside.part\n")
    module = import_plugin_file(plugin)
    assert module.late().BESIDE and module.inner_beside.part.imported_beside.BESIDE
    assert not hasattr(importlib.import_module("wave"), "BESIDE"), "the standard library's"


def test_a_file_beside_a_plugin_that_it_names_is_part_of_its_source(tmp_path):
    table, other = tmp_path / "tables" / "levels.txt", tmp_path / "other.txt"
    table.parent.mkdir()
    table.write_text("1.0")
    other.write_text("1.0")
    plugin = tmp_path / "with_table.py"
    names = ("tables/levels.txt", "tables/../tables/levels.txt", "../outside.txt", "link.txt")
    text = PLUGIN.replace("mine", "with-table")
    plugin.write_text(f"NAMES = {(*names, 'with_table.py', 'a' * 5000, chr(0))!r}\n{text}")
    load_plugin(plugin)
    cls = method_class("with-table")
    before = source_hash(cls)
    (tmp_path.parent / "outside.txt").write_text("1.0")
    (tmp_path / "link.txt").symlink_to(tmp_path.parent / "outside.txt")
    other.write_text("0.25")
    assert source_hash(cls) == before
    assert named_files(plugin) == [table.resolve()], "neither outside nor twice"
    table.write_text("0.25")
    assert source_hash(cls) != before


def test_imports_are_read_from_the_sources(tmp_path):
    sources = {
        "pkg/methods/mine.py": "from ..shared import scale\nfrom . import near\nimport os, torch\n",
        "pkg/methods/near.py": "from pkg.far.away import *\nfrom .... import above\n",
        "pkg/methods/unused.py": "",
        "pkg/shared.py": "def late():\n    import pkg.late\n",
        "pkg/late.py": "",
        "pkg/far/away.py": "",
        "torch.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    imported = own_sources(tmp_path / "pkg" / "methods" / "mine.py", "pkg.methods.mine")
    names = [str(path.relative_to(tmp_path)) for path in imported]
    assert names == ["pkg/far/away.py", "pkg/late.py", "pkg/methods/near.py", "pkg/shared.py"]
    beside = own_sources(tmp_path / "pkg" / "shared.py", "qbench_plugin_shared")
    assert beside == [], "pkg is not beside itself"


def test_code_that_a_model_brings_makes_it_another_one_and_is_not_quantized(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "halved"))
    (folder / "modeling_halved.py").write_text(HALVED)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_halved.Halved"}
    (folder / "config.json").write_text(json.dumps(config))
    plain, trusted = find_model(str(folder)), find_model(str(folder), trust_remote_code=True)
    assert resolved_revision(plain) != resolved_revision(trusted)
    assert resolved_revision(trusted).startswith("code-")
    model, tokenizer = load_model(trusted, "float32")
    with pytest.raises(ConfigError, match=r"code from its folder \(Halved\)"):
        quantize(model, "rtn", Scheme(3, 32), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="is judged by such code"):
        tiny_plan(folder, "none", "rtn", trust_remote_code=True)
    assert len(tiny_plan(folder, "none", trust_remote_code=True).cells) == 1


TASK = """
from types import SimpleNamespace
from qbench.tasks.perplexity import Perplexity

class Mine(Perplexity):
    judge: object = len

    def evaluate(self, context, spec):
        return 1

class Plain:
    name = "plain"

    def __init__(self, *shares):
        self.shares = shares

NAMESPACE = SimpleNamespace(name="namespace", evaluate=len)
"""


def test_the_source_of_a_task_of_others_is_part_of_what_judges(tmp_path):
    path = tmp_path / "task_of_others.py"
    path.write_text(TASK)
    module = import_plugin_file(path)
    task = module.Mine(name="mine")
    before, plain = task_hash(task), task_hash(module.Plain(1))
    assert before != task_hash(module.Mine(name="mine", between=" "))
    assert before != task_hash(module.Mine(name="mine", judge=max))
    assert before != task_hash(Perplexity(name="mine"))
    assert plain == task_hash(module.Plain(1)), "wherever it lies in memory"
    nested = [task_hash(module.Plain(object())) for _ in range(2)]
    assert nested[0] == nested[1] != plain
    path.write_text(TASK.replace("return 1", "return 2"))
    assert before != task_hash(task)
    assert evaluation_hash({"mine": before}) != evaluation_hash({"mine": plain})


def test_facts_of_a_task_are_the_same_in_every_process_or_are_refused(tmp_path):
    path = tmp_path / "task_of_sets.py"
    words = "{'one', 'two', 'three', 'four'}"
    path.write_text(f"import re\n{TASK}\nWORDS = Plain({words}, re.compile('a+'), b'x')\n")
    code = (
        "import sys; from pathlib import Path; from qbench.plugin_file import import_plugin_file;"
        "from qbench.experiment.task_identity import task_hash;"
        "print(task_hash(import_plugin_file(Path(sys.argv[1])).WORDS))"
    )
    told = set()
    for seed in ("1", "2"):
        done = run_python("-c", code, path, env=os.environ | {"PYTHONHASHSEED": seed})
        assert done.returncode == 0, done.stderr
        told.add(done.stdout)
    assert len(told) == 1
    module = import_plugin_file(path)
    long = np.zeros(5000)
    before = task_hash(module.Plain(long))
    long[2500] = 1
    assert task_hash(module.Plain(long)) != before, "which its text leaves out"
    own: list[object] = []
    own.append(own)
    for fault in (Lock(), (number for number in (1, 2)), own):
        with pytest.raises(ConfigError, match="task 'plain' holds what is not the same in every"):
            task_hash(module.Plain(fault))


def test_the_file_that_an_entry_point_names_is_part_of_its_task(tmp_path, monkeypatch):
    """Its class, or that of all namespaces, stands in another file."""
    (tmp_path / "frame_of_tasks.py").write_text(TASK)
    questions = tmp_path / "questions_of_tasks.py"
    text = "from frame_of_tasks import NAMESPACE, Plain\n\nTASK = Plain('a')\n"
    questions.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    modules = [importlib.import_module(path.stem) for path in sorted(tmp_path.glob("*.py"))]
    for task in (modules[1].TASK, modules[1].NAMESPACE):
        installed = {task.name: task}, {}, {task.name: "questions_of_tasks"}
        monkeypatch.setattr(tasks, "_installed", lambda installed=installed: installed)
        questions.write_text(text)
        before = task_hash(task)
        questions.write_text(f"{text}# what is asked is another question\n")
        assert task_hash(task) != before
    for module in modules:
        sys.modules.pop(module.__name__)


def test_code_beside_the_tasks_that_decides_tokens_or_logits_is_part_of_what_judges(monkeypatch):
    read: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    evaluation_hash({})
    assert {"tokenizers.py", "streamed.py", "windows.py", "judging.py", "lm.py"} <= {*read}


@pytest.mark.parametrize(
    "text",
    [
        'HERE / "tables" / "inner" / "levels.txt"',
        '(HERE / "tables/inner" / "levels.txt").read_text()',
        'HERE.joinpath("tables", "inner", "levels.txt")',
        'open(os.path.join(HERE, "tables", "inner", "levels.txt"))',
        'Path("tables", "inner/levels.txt")',
    ],
)
def test_a_table_is_seen_where_its_name_is_joined(text, tmp_path):
    table = tmp_path / "tables" / "inner" / "levels.txt"
    table.parent.mkdir(parents=True)
    table.write_text("1")
    plugin = tmp_path / "with_joined_names.py"
    plugin.write_text(f"def levels():\n    return {text}\n")
    assert named_files(plugin) == [table]
