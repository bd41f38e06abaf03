"""What a run chooses where nothing is said: data, preset, shots, and how it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qbench.environment import is_present
from qbench.errors import ConfigError, DataError, unknown_name
from qbench.experiment.data_choice import choose_data
from qbench.experiment.grid import Grid
from qbench.experiment.identity import ask
from qbench.experiment.plan import make_plan
from qbench.experiment.presets import PRESETS, preset_for
from qbench.tasks import hub, registry
from qbench.tasks.data import choose
from qbench.tasks.declaration import Table
from qbench.tasks.mini_source import MiniSource
from qbench.tasks.registry import load_task_file
from tiny_runs import run_args

NEEDED = ("calibration", "arc_easy")


@pytest.fixture(autouse=True)
def no_data_named(monkeypatch):
    monkeypatch.delenv("QBENCH_DATA", raising=False)


@pytest.fixture
def no_hub(monkeypatch):
    asked = []

    def refusal(names):
        asked.append(tuple(names))
        return "the data set 'x' cannot be had from the hub (ConnectError)"

    monkeypatch.setattr(hub, "refusal", refusal)
    return asked


@pytest.fixture
def hub_answers(monkeypatch):
    monkeypatch.setattr(hub, "refusal", lambda names: None)


@pytest.mark.usefixtures("hub_answers")
def test_auto_is_the_named_folder_then_the_hub(monkeypatch):
    assert choose("auto", False, NEEDED) == ("hub", None)
    assert choose("auto", True, NEEDED) == ("mini", None), "the embedded model needs no network"
    monkeypatch.setenv("QBENCH_DATA", "somewhere")
    assert choose("auto", False, NEEDED) == choose("auto", True, NEEDED) == ("somewhere", None)
    assert choose("mini", False, NEEDED) == ("mini", None)


def test_auto_ends_with_mini_and_a_warning(no_hub):
    data, warning = choose("auto", False, NEEDED)
    assert data == "mini" and "no score is comparable" in warning and "ConnectError" in warning
    assert no_hub == [NEEDED]


def test_the_cache_serves_without_a_network_where_it_has_the_rows(monkeypatch):
    monkeypatch.setattr(hub, "_current", lambda repository: ConnectionError("no network"))
    monkeypatch.setattr(hub.HubSource, "sha256", lambda self, name: "0" * 40)
    monkeypatch.setattr(hub.HubSource, "text", lambda self, name: ["text"])
    read = []

    def rows(self, name, split):
        read.append((name, split))
        if name == "gsm8k":
            raise DataError("the cache has no gsm8k")
        return []

    monkeypatch.setattr(hub.HubSource, "rows", rows)
    assert hub.refusal(NEEDED) is None and {name for name, _ in read} == {"arc_easy"}
    assert hub.refusal((*NEEDED, "gsm8k")) == "the cache has no gsm8k"


def test_a_gpu_with_real_data_takes_the_standard_preset():
    assert preset_for("cuda", True) == "standard"
    assert preset_for("cuda", False) == preset_for("cpu", True) == "quick"
    assert Grid().defaults is PRESETS["quick"]


def test_accuracies_of_the_standard_preset_are_precise_to_a_percent():
    tasks = PRESETS["standard"]["tasks"]
    assert tasks["mmlu"]["limit"] * 57 >= 2500 and tasks["mmlu"]["num_fewshot"] == 5
    assert tasks["arc_easy"].get("limit") is None and tasks["gsm8k"]["num_fewshot"] == 5
    assert set(PRESETS["quick"]["tasks"]) == set(tasks) == set(PRESETS["paper"]["tasks"])


def test_the_default_grid_is_the_named_methods_at_three_widths():
    named = ["none", "rtn", "alternating", "gptq", "awq", "flexround", "uniquanf"]
    grid = Grid()
    assert [method for method, _ in grid.variants] == named
    assert sum(len(grid.schemes(method)) for method in named) == 19 and grid.with_latency


@pytest.mark.usefixtures("no_hub")
def test_the_first_line_tells_data_and_preset(tiny_folder, command, tmp_path):
    args = run_args(
        tiny_folder, tmp_path, "rtn", "3", ["--dry-run", "--data", "auto"], ["arc_easy"]
    )
    code, text, error = command(*args)
    first = text.splitlines()[0]
    assert code == 0, error
    assert first.startswith("data  mini") and "warning: stand-ins are used" in first
    assert "preset quick: sized for two CPU cores" in first


@pytest.mark.slow
@pytest.mark.usefixtures("no_hub")
def test_other_commands_choose_alike_and_say_so(tiny_folder, command, tmp_path):
    saved = tmp_path / "saved"
    warning = "warning: stand-ins are used in place of the real data"
    made = ["quantize", "--model", tiny_folder, "--method", "gptq", "--bits", 3]
    done = command(*made, "--samples", 4, "--length", 32, "-o", saved, "--group-size", 32)
    assert done.code == 0 and "data  mini" in done.err and warning in done.err
    asked = ["eval", saved, "--tasks", "arc_easy", "--set", "arc_easy.limit=2"]
    done = command(*asked)
    assert done.code == 0 and warning in done.err and "data" not in done.out
    done = command(*asked, "--through", "http://127.0.0.1:9")
    assert warning in done.err
    few = ["--windows", 2, "--length", 16, "--dtype", "float32", "-o", tmp_path / "layers"]
    done = command("layers", saved, "--model", tiny_folder, *few)
    assert done.code == 0 and warning in done.err


@pytest.mark.usefixtures("no_hub")
def test_a_folder_made_of_the_embedded_model_needs_no_hub(tmp_path):
    assert choose_data("auto", ("smollm2-135m",), NEEDED).warning is None
    assert choose_data("auto", (str(tmp_path),), NEEDED).warning is not None


@pytest.mark.parametrize(
    "preset, absent", [("openllm", "hellaswag, winogrande"), ("gptq-2048", "c4")]
)
def test_a_preset_leaves_out_what_the_data_does_not_have(
    tiny_folder, command, tmp_path, preset, absent
):
    args = ["run", "--model", tiny_folder, "--preset", preset, "--data", "mini", "--dry-run"]
    args += ["--methods", "rtn", "--group-size", 32, "--out", tmp_path / "out"]
    code, text, error = command(*args)
    assert code == 0, error
    assert f"mini has no data for {absent}, so that it is left out" in error
    assert f"({preset}, " in text, "and it does not go by the protocol's name"
    code, _, error = command(*args, "--tasks", absent.partition(",")[0])
    assert code == 2 and "left out" not in error, "who asks for a task gets it or not"


def test_the_paper_preset_on_mini_data_says_what_it_cannot_do(tiny_folder, command, tmp_path):
    args = ["run", "--model", tiny_folder, "--preset", "paper", "--data", "mini", "--dry-run"]
    args += ["--group-size", 32]
    code, text, error = command(*args, "--out", tmp_path)
    assert code == 0, error
    assert "has no examples for the prompts of mmlu" in error and "not 5-shot" in error
    assert "preset paper" in text
    code, _, error = command(*args, "--set", "mmlu.num_fewshot=5")
    assert code == 2 and "use 0, or data that has it" in error, (
        "who asks for shots gets them or not"
    )


@pytest.mark.skipif(is_present("cuda"), reason="there is a GPU here")
def test_cells_for_another_machine_may_want_its_gpu(tiny_folder, command, tmp_path):
    args = run_args(tiny_folder, tmp_path, "rtn", "3", ["--dry-run", "--device", "cuda"])
    code, _, error = command(*args)
    assert code == 2 and "device 'cuda' is not there" in error
    code, text, error = command(*args, "--executor", "slurm", "--address", "debug")
    assert code == 0, error
    assert "a GPU's data sheet, as there is none here" in text


def test_a_plan_says_what_is_to_be_downloaded(tiny_folder, monkeypatch):
    from qbench.experiment import plan as planning

    grid = Grid(model=(str(tiny_folder),), methods=("rtn",), bits=(3,), group_size=32, data="mini")
    assert make_plan(grid).downloads == {}
    monkeypatch.setattr(planning, "is_here", lambda source: False)
    (nbytes,) = make_plan(grid).downloads.values()
    weights = (tiny_folder / "model.safetensors").stat().st_size
    assert abs(nbytes - weights) < 0.2 * weights


def test_names_are_found_in_other_letters_and_by_their_beginning():
    assert "Did you mean 'gptq'?" in unknown_name("method", "GPTQ", ["awq", "gptq"])
    known = ["arc_challenge", "arc_easy", "mmlu"]
    assert "'arc_challenge' or 'arc_easy'?" in unknown_name("task", "arc", known)
    assert "Did you mean" not in unknown_name("task", "zzz", known)
    assert "Did you mean" not in unknown_name("task", "", known)


def test_a_table_of_the_hub_is_declared_for_every_task_of_a_preset():
    from qbench.tasks.registry import get_task

    for preset in PRESETS.values():
        for name in preset["tasks"]:
            assert isinstance(get_task(get_task(name).table_name).table, Table)
    with pytest.raises(ConfigError, match="unknown preset"):
        Grid(preset="fast").defaults  # noqa: B018


def test_two_tasks_of_one_name_in_records_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_loaded", {})
    facts = yaml.safe_load((Path(registry.__file__).parent / "arc_easy.yaml").read_text())
    path = tmp_path / "text.yaml"
    path.write_text(yaml.safe_dump(facts | {"name": "text", "table": "arc_easy"}))
    load_task_file(path)
    with pytest.raises(ConfigError, match="tasks 'wikitext' and 'text' would both be 'mini-text'"):
        ask(Grid(tasks=("wikitext", "text")), MiniSource())
    assert [spec.name for _, spec in ask(Grid(tasks=("text",)), MiniSource())] == ["mini-text"]
