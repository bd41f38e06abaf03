"""What every registered task keeps, and that a task of one's own is one file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qbench.errors import ConfigError
from qbench.reports.headline import Headline, headlines
from qbench.tasks import registry
from qbench.tasks.contract import Context, Task, Unquantized
from qbench.tasks.data import fetch, inventory, table
from qbench.tasks.declaration import Table
from qbench.tasks.folder import FolderSource, write_parquet
from qbench.tasks.mini_source import EMBEDDED, MiniSource, record_names
from qbench.tasks.registry import all_tasks, get_task, load_task_file

LENGTH = 64
PROTOCOL = {"limit": 2, "num_fewshot": 0, "length": LENGTH, "generate": 1}


@pytest.fixture(autouse=True)
def no_task_files_left(monkeypatch):
    monkeypatch.setattr(registry, "_loaded", {})


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> FolderSource:
    """A folder of the embedded data, or of declared examples, under the names of the real data."""
    folder = tmp_path_factory.mktemp("data") / "set"
    mini = MiniSource()
    for name in registry.task_tables():
        declared = table(name)
        if name in EMBEDDED:
            for split in mini.splits(name):
                rows = (
                    [{"text": text} for text in mini.text(name)]
                    if declared.running_text
                    else mini.rows(name, split).to_list()
                )
                write_parquet(rows, folder / declared.folder / f"{split}.parquet")
        elif declared.example:
            for split in declared.splits:
                write_parquet([declared.example] * 3, folder / declared.folder / f"{split}.parquet")
    return FolderSource(folder)


@pytest.mark.parametrize("name", all_tasks())
def test_a_task_declares_everything(name):
    task = get_task(name)
    assert isinstance(task, Task) and task.name == name
    assert task.kind in ("multiple_choice", "generation", "loglikelihood", "text")
    assert task.describe() and "\n" not in task.describe()
    assert isinstance(task.table, Table) or isinstance(get_task(task.table).table, Table)
    own = task.table if isinstance(task.table, Table) else get_task(task.table).table
    assert own.example, f"the file of task {name} lacks a row `example` in its table"
    assert task.cost.items > 0 and (task.kind == "text" or task.cost.tokens > 0)
    assert [score for score in task.scores if score.headline]
    assert len({(score.metric, score.filter) for score in task.scores}) == len(task.scores)


def test_a_metric_has_one_unit_in_all_tasks():
    units: dict[str, set[str]] = {}
    for task in all_tasks().values():
        for score in task.scores:
            units.setdefault(score.metric, set()).add(score.unit)
    assert all(len(of_metric) == 1 for of_metric in units.values())


@pytest.mark.usefixtures("few_modules")
@pytest.mark.parametrize("name", all_tasks())
def test_a_task_judges_a_tiny_model(name, source, tiny, tokenizer, tmp_path):
    task = get_task(name)
    spec = task.spec(source, **PROTOCOL)
    assert spec.name == name and spec.limit == 2 and len(spec.sha256) == 64
    model = tiny()
    unquantized = Unquantized(lambda: (model, tokenizer), lambda spec: tmp_path / "reference.npy")
    context = Context(model, tokenizer, source, batch_size=4, unquantized=unquantized)
    task.prepare(context, spec)
    outcome = task.evaluate(context, spec)
    json.dumps(outcome.samples, allow_nan=False)

    items = {row["doc_id"] for row in outcome.samples}
    assert len(items) <= task.cost.asked(2)
    for row in outcome.samples:
        assert isinstance(row["doc_id"], int) and row["filter"]
        assert "doc_hash" in row or "prompt_hash" in row

    declared = {(s.metric, s.filter): s.higher_is_better for s in task.scores}
    given = {(s.metric, s.filter): s for s in outcome.scores if s.task == name}
    assert declared.keys() == given.keys()
    for key, score in given.items():
        assert score.higher_is_better == declared[key]
    parts = {score.task for score in outcome.scores} - {name}
    assert all(task.has_subjects and part.startswith(f"{name}_") for part in parts)


def test_a_share_is_a_percentage_in_every_report():
    assert Headline("arc_easy", "acc", "none", True).title == "arc_easy acc %"
    assert (
        Headline("gsm8k", "gold_nll", "none", False).heading == "gsm8k gold_nll in nats per token ↓"
    )


def test_no_other_file_names_a_task():
    """What is said about a task stands in its own file, so these modules know none."""
    from qbench.experiment import estimate, plan, plugins, runner, single, store
    from qbench.reports import headline, numbers

    modules = (estimate, plan, plugins, runner, single, store, headline, numbers)
    for module in modules:
        code = Path(module.__file__).read_text()
        for name in all_tasks():
            assert f'"{name}"' not in code, f"{module.__name__} names {name}"


def test_declarations_need_neither_torch_nor_lm_eval():
    code = (
        "import sys; from qbench.reports.headline import headlines; headlines([]);"
        "from qbench.reports.numbers import number;"
        "assert number(0.5, 0.1, '%') == '50.0 ± 10.0';"
        "assert not {'torch', 'lm_eval', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


MINE = """
name: my_openbookqa
about: my own rows, asked as lm-eval asks OpenBookQA
paper: mine
kind: multiple_choice
harness: openbookqa
harness_path: openbookqa
table:
  folder: mine
  splits: [test]
  columns: [question_stem, choices, answerKey]
  repository: me/mine
  config: null
  licence: mine
  other_layout:
    folder: plain
    files: {test: rows}
    columns:
      question_stem: query
      choices: "{'text': choices, 'label': ['A', 'B']}"
      answerKey: "'AB'[gold]"
splits: [test]
companion: gold_logprob
cost: {items: 3, tokens: 20}
scores:
  - {metric: acc, unit: "%", better: higher, headline: true, screen: acc %}
  - {metric: gold_logprob, unit: nats, better: higher, headline: true}
"""


@pytest.fixture
def my_task(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    rows = [{"query": f"{n} is", "choices": ["even", "odd"], "gold": n % 2} for n in range(3)]
    write_parquet(rows, tmp_path / "data" / "plain" / "rows.parquet")
    return path


def test_a_task_of_ones_own_is_one_file(my_task, tmp_path, tiny, tokenizer):
    assert load_task_file(my_task) == "my_openbookqa"
    assert load_task_file(my_task) == "my_openbookqa", "loading it twice is loading it once"
    task, source = get_task("my_openbookqa"), FolderSource(tmp_path / "data")
    spec = task.spec(source)
    outcome = task.evaluate(Context(tiny(), tokenizer, source), spec)
    assert [row["target"] for row in outcome.samples] == [0, 1, 0]
    assert {score.metric for score in outcome.scores} == {"acc", "acc_norm", "gold_logprob"}
    (line,) = [row for row in inventory(source) if row["table"] == "my_openbookqa"]
    assert (line["rows"], line["licence"]) == (3, "mine")

    fetch(tmp_path / "copy", source=source)
    copy = FolderSource(tmp_path / "copy")
    assert (tmp_path / "copy" / "mine" / "test.parquet").is_file()
    rows = copy.rows("my_openbookqa", "test")
    assert rows.to_list() == source.rows("my_openbookqa", "test").to_list()


def test_a_task_file_is_a_plug_in_of_a_run(my_task, tmp_path, tiny_folder, monkeypatch, capsys):
    from qbench.commands import main
    from qbench.experiment.store import read_records

    out = tmp_path / "out"
    write_parquet([{"text": "word " * 2000}], tmp_path / "data" / "c4_sample" / "train.parquet")
    args = ["run", "--model", tiny_folder, "--methods", "none", "--tasks", "my_openbookqa"]
    args += ["--plugin", my_task, "--data", tmp_path / "data", "--dtype", "float32", "--out", out]
    monkeypatch.setattr("sys.argv", ["qbench", *map(str, args)])
    with pytest.raises(SystemExit) as leaving:
        main.main()
    assert not leaving.value.code, capsys.readouterr()
    ((record,), complaints) = read_records(out)
    assert record.status == "ok" and not complaints
    assert [h.title for h in headlines([record])] == [
        "my_openbookqa acc %",
        "my_openbookqa gold_logprob in nats",
    ]
    assert f"--plugin {my_task}" in record.command


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: my_openbookqa", "name: arc_easy"), "defines task 'arc_easy', which exists"),
        (("name: my_openbookqa", "name: ../../mine"), "has the name '../../mine', which is not"),
        (("cost: {items: 3, tokens: 20}\n", ""), "mine.yaml does not describe a task: cost"),
    ],
)
def test_a_task_file_that_cannot_be_used(my_task, change, message):
    my_task.write_text(MINE.replace(*change))
    with pytest.raises(ConfigError, match=message):
        load_task_file(my_task)


def test_a_task_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml' is not a file; give a YAML file"):
        load_task_file(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("metric: acc,", "metric: f1,"), "declares the score 'f1', which it does not give; .*acc"),
        (
            ("unit: nats, better: higher", "unit: nats, better: lower"),
            "declares that a lower gold_logprob is better; lm-eval says the contrary",
        ),
        (("splits: [test]\ncompanion", "splits: [train]\ncompanion"), "'train', and lm-eval's"),
    ],
)
def test_declared_scores_are_held_against_the_stock_task(
    my_task, tmp_path, tiny, tokenizer, change, message
):
    text = MINE.replace(*change).replace("  splits: [test]", "  splits: [train, test]")
    text = text.replace("{test: rows}", "{train: rows, test: rows}")
    my_task.write_text(text)
    load_task_file(my_task)
    task, source = get_task("my_openbookqa"), FolderSource(tmp_path / "data")
    with pytest.raises(ConfigError, match=message):
        task.evaluate(Context(tiny(), tokenizer, source), task.spec(source))


def test_names_in_records():
    assert record_names("arc_easy") == ("arc_easy", "mini-arc_easy")
    assert record_names("wikitext") == ("wikitext", "mini-text")
