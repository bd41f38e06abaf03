"""Protocols as data: what a preset declares, what is hashed, when it is called by its name."""

from __future__ import annotations

import copy

import pytest

from qbench.errors import ConfigError
from qbench.experiment import grid as grids
from qbench.experiment.grid import PRESETS, TASK_KEYS, Grid, parse_set
from qbench.experiment.outcomes import record_of
from qbench.experiment.plan import make_plan
from qbench.records import TaskSpec
from qbench.tasks.registry import get_task

KEYS = {
    "about", "source", "differs", "methods", "group_size", "calibration", "batch_size", "latency",
    "settings", "replicates", "chat_template", "bos", "versions", "tasks", "scores",
}  # fmt: skip
NAMED = ("uniquanf-acl2025", "gptq-2048", "openllm")
SPEC = TaskSpec(name="gsm8k", data="d", sha256="0" * 64, limit=4, num_fewshot=1)


def plan(folder, **changes):
    few = {
        "wikitext.limit": "2",
        "wikitext.length": "64",
        "arc_easy.limit": "2",
        "calibration.samples": "4",
        "calibration.length": "32",
    }
    settings = parse_set([f"{key}={value}" for key, value in few.items()])
    asked = {"model": (str(folder),), "methods": ("rtn",), "bits": (3,), "group_size": 32}
    asked |= {"tasks": ("wikitext", "arc_easy"), "data": "mini", "set": settings, "jobs": 1}
    return make_plan(Grid(**asked | changes))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_declares_what_there_is(name):
    preset = PRESETS[name]
    assert preset.keys() <= KEYS
    for task, options in preset["tasks"].items():
        assert options.keys() <= set(TASK_KEYS)
        declared = {f"{score.metric}/{score.filter}" for score in get_task(task).scores}
        wanted = preset.get("scores", {}).get(task)
        assert wanted is None or wanted in declared or f"{wanted}/none" in declared
    assert preset.get("scores", {}).keys() <= preset["tasks"].keys()


@pytest.mark.parametrize("name", NAMED)
def test_a_named_protocol_says_where_it_is_from_and_leaves_nothing_open(name):
    preset = PRESETS[name]
    assert {"source", "differs", "versions", "bos", "chat_template", "scores"} <= preset.keys()
    for task, options in preset["tasks"].items():
        kind = get_task(task).kind
        assert ("length" if kind == "text" else "num_fewshot") in options
        assert kind != "generation" or "max_gen_toks" in options


def test_a_preset_of_another_version_of_lm_eval_is_refused(tiny_folder, monkeypatch):
    other = {**PRESETS["gptq-2048"], "versions": {"lm_eval": "0.4.2"}}
    monkeypatch.setitem(grids.PRESETS, "gptq-2048", other)
    with pytest.raises(ConfigError, match=r"'gptq-2048' is defined with lm_eval 0\.4\.2, and the"):
        plan(tiny_folder, preset="gptq-2048")


def test_which_code_judges_is_told_task_by_task(tiny_folder):
    """What another task declares is not part of it, as it is of the cells' hash of them all."""
    windows = parse_set(["wikitext.limit=2", "wikitext.length=64"])
    one, both = plan(tiny_folder, tasks=("wikitext",), set=windows), plan(tiny_folder)
    assert one.cells[0].evaluation != both.cells[0].evaluation
    assert one.judging.code == both.judging.code
    assert one.judging.tasks["mini-text"] == both.judging.tasks["mini-text"]
    assert both.judging.tasks.keys() == {"mini-text", "mini-arc_easy"}
    assert len({both.judging.code, *both.judging.tasks.values()}) == 3
    record = record_of(both, {}, both.cells[0], "skipped", "not run")
    assert record.judging == both.judging


def test_what_is_not_said_leaves_a_specs_identity_as_it_was():
    assert SPEC.facts().keys() == {
        "name", "data", "sha256", "limit", "num_fewshot", "length", "generate",
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 5},
        {"num_fewshot": 0},
        {"generate": 0},
        {"max_gen_toks": 512},
        {"chat_template": True},
        {"bos": "none"},
        {"sha256": "1" * 64},
    ],
)
def test_another_setting_is_another_protocol(change):
    assert SPEC.model_copy(update=change).protocol != SPEC.protocol
    assert SPEC.model_copy().protocol == SPEC.protocol


def test_a_protocol_is_called_by_its_name_where_it_is_asked_as_declared(tiny_folder, monkeypatch):
    tasks = {"wikitext": {"limit": 2, "length": 64}, "arc_easy": {"limit": 2}}
    small = {**PRESETS["quick"], "tasks": tasks, "calibration": {"samples": 4, "length": 32}}
    monkeypatch.setitem(grids.PRESETS, "quick", small)
    whole = plan(tiny_folder).protocol
    assert whole["name"] == "quick" and len(whole["hash"]) == 12
    assert plan(tiny_folder, tasks=None, set={}).protocol == whole
    assert plan(tiny_folder, set={}, tasks=("arc_easy",)).protocol["name"] == "quick, in part"
    for change in (
        {"set": parse_set(["arc_easy.limit=3"])},
        {"set": parse_set(["arc_easy.num_fewshot=0", "wikitext.spread=1"])},
        {"set": parse_set(["calibration.samples=5"])},
        {"tasks": ("wikitext", "arc_challenge"), "set": {}},
        {"bos": "none"},
    ):
        other = plan(tiny_folder, **change).protocol
        assert other["name"] == "quick, changed" and other["hash"] != whole["hash"]


def test_a_statement_holds_every_setting(tiny_folder):
    statement = plan(tiny_folder, bos="tokenizer").protocol["statement"]
    asked = statement["tasks"]["mini-arc_easy"]
    assert asked["limit"] == 2 and asked["num_fewshot"] == 0 and asked["bos"] == "tokenizer"
    assert asked["chat_template"] is False and asked["max_gen_toks"] is None
    assert (
        asked["items"].startswith("the first 2 of a shuffle") and "acc_norm/none" in asked["scores"]
    )
    assert statement["tasks"]["mini-text"]["batch_size"] == 1, "windows go one by one"
    assert {"lm_eval", "torch"} <= statement["versions"].keys()
    assert statement["calibration"]["samples"] == 4 and statement["dtype"]


def test_a_chat_template_that_a_model_has_not_is_refused(tiny_folder):
    with pytest.raises(ConfigError, match="has no chat template; leave out --chat-template"):
        plan(tiny_folder, chat_template=True)


def test_a_template_is_part_of_a_cell(tiny, tokenizer, tmp_path):
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tiny(hidden_size=64).save_pretrained(tmp_path)
    chatty.save_pretrained(tmp_path)
    plain, templated = plan(tmp_path), plan(tmp_path, chat_template=True)
    text, questions = templated.cells[0].tasks
    assert questions.chat_template and not text.chat_template, "windows of text have no prompt"
    assert plain.cells[0].id != templated.cells[0].id
    assert plain.cells[0].artifact == templated.cells[0].artifact, "one model, asked in two ways"


def test_a_cells_command_repeats_how_prompts_are_written(tiny_folder):
    from qbench.experiment.cells import cell_command

    made = plan(tiny_folder, bos="none", chat_template=False)
    line = cell_command(made.grid, made.cells[0])
    assert "--no-chat-template --bos none" in line
    assert "--bos" not in cell_command(plan(tiny_folder).grid, made.cells[0])


def test_settings_of_generation_mean_nothing_elsewhere(tiny_folder):
    with pytest.raises(ConfigError, match="the task 'wikitext' has no 'max_gen_toks'"):
        plan(tiny_folder, set=parse_set(["wikitext.max_gen_toks=5"]))
