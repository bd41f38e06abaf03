"""The head of a card and `.eval_results`, as huggingface_hub reads them."""

from __future__ import annotations

import pytest
import yaml

import qbench
from qbench import Scheme
from qbench.checkpoint.card_metadata import Benchmark
from qbench.checkpoint.folder import add_scores
from qbench.files.written_folder import verify
from qbench.records import Cell, Record, Score, TaskSpec

ARC = Benchmark("allenai/ai2_arc", "ARC-Easy", "test", "acc", "none", 2376)


def saved(tiny, folder, **facts):
    quantized = qbench.quantize(tiny(), "rtn", Scheme(3, 16))
    quantized.manifest |= facts
    return quantized.save(folder)


def record(*scores, limit=64):
    tasks = (
        TaskSpec(name="arc_easy", data="arc_easy", sha256="a" * 64, limit=limit, num_fewshot=0),
        TaskSpec(name="mini-gsm8k", data="mini-gsm8k", sha256="b" * 64, limit=4),
    )
    cell = Cell(
        model="tiny",
        revision="main",
        method="rtn",
        params={},
        source="0" * 12,
        scheme=Scheme(3, 16),
        calibration=None,
        tasks=tasks,
        dtype="float32",
        seed=0,
    )
    made = []
    for task, metric, value in scores:
        made.append(
            Score(task=task, metric=metric, value=value, stderr=0.01, n=64, higher_is_better=True)
        )
    return Record(id=cell.id, cell=cell, status="ok", scores=tuple(made))


SCORES = (
    ("arc_easy", "acc", 0.5),
    ("arc_easy", "gold_logprob", -1.25),
    ("mini-gsm8k", "gold_nll", 0.75),
    ("arc_easy_part", "acc", 0.1),
)


def head(folder):
    from huggingface_hub import ModelCard

    return ModelCard.load(folder / "README.md").data


def test_the_card_names_base_model_and_licence(tiny, tmp_path):
    facts = {"base_model": "somebody/model", "licence": "apache-2.0"}
    card = head(saved(tiny, tmp_path / "s", **facts))
    assert (card.base_model, card.license) == ("somebody/model", "apache-2.0")
    assert card["base_model_relation"] == "quantized" and card.library_name == "transformers"


def test_a_card_that_knows_neither_names_neither(tiny, tmp_path):
    card = head(saved(tiny, tmp_path / "s")).to_dict()
    assert card.keys() == {"library_name", "pipeline_tag", "tags"}


def test_scores_of_whole_tasks_are_the_model_index(tiny, tmp_path):
    folder = saved(tiny, tmp_path / "s")
    add_scores(folder, record(*SCORES), {"arc_easy": ARC})
    card = head(folder)
    read = {r.metric_name: r for r in card.eval_results}
    assert {name: r.metric_value for name, r in read.items()} == {
        "arc_easy acc": 0.5,
        "arc_easy gold_logprob": -1.25,
        "mini-gsm8k gold_nll": 0.75,
    }
    arc = read["arc_easy acc"]
    assert (arc.dataset_type, arc.dataset_config) == ("allenai/ai2_arc", "ARC-Easy")
    asked = {"limit": 64, "num_fewshot": 0}
    assert arc.metric_type == "acc"
    assert arc.metric_args.items() >= (asked | {"stderr": 0.01, "items": 64}).items()
    assert read["mini-gsm8k gold_nll"].dataset_type == "mini-gsm8k"
    assert card.model_name == "rtn 3b g16"


def test_a_share_of_right_answers_has_its_interval_in_the_card(tiny, tmp_path):
    folder, made = saved(tiny, tmp_path / "s"), record(("arc_easy", "acc", 0.0))
    none_right = made.scores[0].model_copy(update={"stderr": None, "low": 0.0, "high": 0.057})
    add_scores(folder, made.model_copy(update={"scores": (none_right,)}), {"arc_easy": ARC})
    assert "| 0 |  | 0 to 0.057 | 64 |" in (folder / "README.md").read_text()
    (read,) = head(folder).eval_results
    assert (read.metric_args["low"], read.metric_args["high"]) == (0.0, 0.057)


@pytest.mark.parametrize(
    ("limit", "items", "notes"),
    [
        (64, 2376, "acc of 64 of 2376 items, 0-shot, by qbench"),
        (None, 2376, "acc of 64 of 2376 items, 0-shot, by qbench"),  # such as those generated
        (None, 64, "acc of all 64 items, 0-shot, by qbench"),
        (5000, 64, "acc of all 64 items, 0-shot, by qbench"),
    ],
)
def test_the_headline_of_a_published_data_set_is_a_file_of_results(
    tiny, tmp_path, limit, items, notes
):
    folder = saved(tiny, tmp_path / "s")
    add_scores(folder, record(*SCORES, limit=limit), {"arc_easy": ARC._replace(items=items)})
    (file,) = (folder / ".eval_results").iterdir()
    content = yaml.safe_load(file.read_text())
    assert file.name == "arc_easy.yaml"
    assert content == [
        {
            "dataset": {"id": "allenai/ai2_arc", "task_id": "ARC-Easy"},
            "value": 0.5,
            "notes": notes,
        }
    ]
    assert not any(verify(folder).values())


def test_the_hub_reads_the_results(tiny, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    if not hasattr(hub, "EvalResultEntry"):
        pytest.skip("this huggingface_hub is older than .eval_results")
    from huggingface_hub._eval_results import parse_eval_result_entries

    folder = saved(tiny, tmp_path / "s")
    add_scores(folder, record(*SCORES), {"arc_easy": ARC})
    (entry,) = parse_eval_result_entries(
        yaml.safe_load((folder / ".eval_results/arc_easy.yaml").read_text())
    )
    assert (entry.dataset_id, entry.task_id, entry.value) == ("allenai/ai2_arc", "ARC-Easy", 0.5)


def test_results_that_a_later_record_does_not_have_go(tiny, tmp_path):
    folder = saved(tiny, tmp_path / "s")
    add_scores(folder, record(*SCORES), {"arc_easy": ARC})
    add_scores(folder, record(SCORES[2]), {"arc_easy": ARC})
    assert not list((folder / ".eval_results").iterdir())
