"""From what the user types to cells."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from qbench import registry
from qbench.errors import ConfigError
from qbench.experiment.cells import cell_command, expand, repeated
from qbench.experiment.grid import PRESETS, SWEEPS, Grid, parse_set
from qbench.experiment.grid_checks import check_request
from qbench.experiment.grid_file import read_grid
from qbench.experiment.identity import Identity
from qbench.experiment.plan import each_model_once
from qbench.models.source import find_model
from qbench.records import CalibrationSpec, Judging, TaskSpec
from qbench.registry import get_method

CALIBRATION = CalibrationSpec(data="c4", sha256="0", samples=2, length=8, dtype="float32")
TASKS = (TaskSpec(name="arc_easy", data="d", sha256="1"),)


def cells(**changes):
    grid = Grid(**changes)
    return expand(grid, identity(grid))


def identity(grid, **changes):
    facts = {
        "revisions": dict.fromkeys(grid.model, "r"),
        "stored_as": dict.fromkeys(grid.model),
        "tasks": tuple(TASKS),
        "declared": {},
        "calibrations": (CALIBRATION,),
        "dtype": "float32",
        "quantization": "q",
        "evaluation": "e",
        "judging": Judging(code="e"),
        "batch_size": 8,
        "device": "cpu",
    }
    return Identity(**facts | changes)


def test_the_default_grid():
    found = cells()
    assert [cell.method for cell in found[:4]] == ["none", "rtn", "rtn", "rtn"]
    assert len(found) == 1 + 6 * 3 and len({cell.id for cell in found}) == 19
    calibrated = {cell.method for cell in found if cell.calibration}
    assert calibrated == {"gptq", "awq", "flexround", "uniquanf"}
    assert found[0].scheme is None


def test_sweeps_are_products_and_drop_what_equals_the_default():
    found = cells(
        methods=("rtn",),
        bits=(3,),
        set={"rtn": {"clip": ("search", "none"), "zero_point": ("real",)}},
    )
    assert [cell.params for cell in found] == [
        {"zero_point": "real"},
        {"clip": "none", "zero_point": "real"},
    ]
    assert len(cells(methods=("rtn",), bits=(3, 3), set={"rtn": {"ratios": ("16", "16")}})) == 1


def test_the_command_makes_the_cell_again():
    grid = Grid(
        methods=("gptq",),
        bits=(2, 3),
        set={"gptq": {"damp": (0.1,)}, "wikitext": {"limit": (4,)}},
        data="mini",
    )
    found = expand(grid, identity(grid))[1]
    command = cell_command(grid, found)
    assert "--data 'my data'" in cell_command(grid.model_copy(update={"data": "my data"}), found)
    for part in (
        "--bits 3",
        "--methods gptq",
        "--set gptq.damp=0.1",
        "--set wikitext.limit=4",
        "--data mini",
        "--seed 0",
    ):
        assert part in command


def test_files_are_overridden_by_flags(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "model: smollm2-135m\nbits: [3]\nmethods: [rtn, gptq]\nset: {gptq: {damp: [0.01, 0.1]}}\n"
    )
    grid = read_grid(path, {"bits": (4,), "methods": None})
    assert (
        grid.bits == (4,)
        and grid.methods == ("rtn", "gptq")
        and grid.set["gptq"]["damp"] == (0.01, 0.1)
    )


@pytest.mark.parametrize(
    "text",
    [
        "bits: 2,3\nmethods: none, gptq\nset:\n  gptq:\n    damp: 0.01, 0.1",
        "bits: [2, 3]\nmethods: [none, gptq]\nset: {gptq: {damp: [0.01, 0.1]}}",
        "bits: 2, 3\nmethods:\n- none\n- gptq\nset:\n  gptq.damp: 0.01,0.1",
        "bits: ['2', '3']\nmethods: none,gptq\nset: ['gptq.damp=0.01,0.1']",
        "bits: 2,3\nmethods: none,gptq\nset: gptq.damp=0.01,0.1",
    ],
)
def test_the_natural_forms_of_a_file_make_the_same_cells(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    plain = {"gptq": {"damp": (0.01, 0.1)}}
    wanted = cells(bits=(2, 3), methods=("none", "gptq"), set=plain)
    grid = read_grid(path, {})
    assert expand(grid, identity(grid)) == wanted and len(wanted) == 5


def test_flags_override_what_a_file_sets_parameter_by_parameter(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("jobs: 3\nset: {gptq: {damp: 0.1, norm: 2}, wikitext.limit: 4}\n")
    grid = read_grid(path, {"set": parse_set(["gptq.damp=0.5"]), "workers": None})
    assert grid.set == {"gptq": {"damp": ("0.5",), "norm": (2,)}, "wikitext": {"limit": (4,)}}
    assert grid.workers == 3 and read_grid(path, {"workers": "auto"}).workers is None
    assert read_grid(path, {"jobs": 2}).workers == 2


def test_several_calibrations_are_a_cell_each():
    grid = Grid(
        methods=("rtn", "gptq"), bits=(3,), set={"calibration": {"samples": ("2", "4", "2")}}
    )
    assert grid.calibrations == [{"samples": 2, "length": 256}, {"samples": 4, "length": 256}]
    samples = [CALIBRATION.model_copy(update=sample) for sample in grid.calibrations]
    found = expand(grid, identity(grid, calibrations=tuple(samples)))
    assert [cell.method for cell in found] == ["rtn", "gptq", "gptq"]
    assert len({cell.id for cell in found}) == 3
    commands = [cell_command(grid, cell) for cell in found]
    assert "--set calibration.samples=2 " in f"{commands[1]} "
    assert "--set calibration.samples=4 " in f"{commands[2]} "
    with pytest.raises(ConfigError, match=r"calibration.samples=0 is too small; give 1 or more"):
        _ = Grid(set=parse_set(["calibration.samples=0"])).calibrations


@pytest.mark.parametrize(
    "text, message",
    [
        ("workers: 0", "workers=0: Input should be greater than or equal to 1"),
        ("set: 3", "set: 3 is no map; for example"),
        ("set: {gptq: 3}", "set: gptq: 3 names no parameter; for example"),
        ("set: {gptq: 3, gptq.damp: 0.1}", "set: gptq: 3 names no parameter"),
        ("set: {gptq: {damp: {a: 1}}}", "set.gptq.damp.0"),
        ("set: {gptq.damp: []}", "set: gptq.damp has no value"),
        ("set: {gptq: {damp: 1}, gptq.damp: 2}", "gptq.damp is set twice"),
        ("bits: true", "bits.0=True: Input should be a number"),
        ("group_size: true", "group_size=True: Input should be a number"),
        ("head_bits: yes", "head_bits=True: Input should be a number"),
        ("seed: false", "seed=False: Input should be a number"),
        ("time_limit: true", "time_limit=True: Input should be a number"),
        ("workers: true", "workers=True: Input should be a number"),
        ("memory: true", "memory=True: Input should be a number"),
        ("bits: 3\nseed: 1\nbits: 4", "'bits' stands in line 1 and again in line 3"),
        ("set:\n  gptq: {damp: 1}\n  gptq: {norm: 1}", "in line 2 and again in line 3; keep one"),
        ("jobs: 1\nworkers: 2", "jobs and workers are one key"),
        ("set: [gptq]", "--set 'gptq' is not NAME.PARAM=VALUE"),
        ("{methods: gptq, bits: 2,3,4}", "unknown grid key '3'.*or '2,3,4' in quotes"),
        ("{methods: rtn,gptq, bits: 3}", "unknown grid key 'gptq'.*or '2,3,4' in quotes"),
        ("set: {calibration.samples: 4,8}", "set: 8 is no name; several values are written"),
        ("set: {gptq: {damp: 1,2}}", "set: 2 is no name; several values are written"),
        ("set: {gptq.importance: best,none}", "set: none has no value; give one, or leave it out"),
        ("bits: 3\nskipp:", "unknown grid key 'skipp'. Did you mean 'skip'"),
        ("layers: ['*.q=3', '*.k=4', '*.q=8']", "layers: '.*q' has two rules, 3 and 8, and"),
        ("layers: [3]", "layers: 3 is no rule; for example"),
        ("bitz: [3]", "unknown grid key 'bitz'. Did you mean 'bits'"),
        ("bits: [three]", "bits.0='three': Input should be a number"),
        ("- 3", "holds a list; it must map keys to values"),
        ("a: [", "cannot be read"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    for flags in ({}, {"set": parse_set(["rtn.ratios=1"])}):
        with pytest.raises(ConfigError, match=message):
            read_grid(path, flags)


def test_a_key_without_a_value_is_no_key(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("bits:\nset:\ndata:\nmethods: rtn\n")
    assert read_grid(path, {}) == Grid(methods=("rtn",))
    path.write_text("set: {rtn: {}}")
    assert read_grid(path, {}).set == {}


def test_what_is_named_twice_is_asked_once():
    grid = Grid(
        model="a,b,a", methods="rtn,gptq,rtn", bits="3,2,3", tasks=("arc_easy", "mmlu", "arc_easy")
    )
    assert grid.model == ("a", "b") and grid.methods == ("rtn", "gptq") and grid.bits == (3, 2)
    assert grid.task_names == ("arc_easy", "mmlu")


def test_a_model_by_two_names_is_one_model(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    names = ("m", "./m", str(tmp_path / "m"), "org/m", "org/m@v1")
    models = each_model_once([find_model(name) for name in names])
    assert list(models) == ["m", "org/m", "org/m@v1"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"methods": ("gtpq",)}, "unknown method 'gtpq'. Did you mean 'gptq'"),
        ({"methods": ("rtn",), "bits": (1,)}, "method 'rtn' supports 2 to 8 bits, not bits=1"),
        ({"set": {"gtpq": {"damp": ("1",)}}}, "unknown name in --set 'gtpq'. Did you mean 'gptq'"),
        ({"set": {"gptq": {"dmap": ("1",)}}}, "unknown parameter of method 'gptq' 'dmap'"),
        ({"preset": "quik"}, "unknown preset 'quik'. Did you mean 'quick'"),
    ],
)
def test_wrong_grids(changes, message):
    with pytest.raises(ConfigError, match=message):
        cells(**changes)
    with pytest.raises(ConfigError, match=message):
        check_request(Grid(**changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sweep": "uniquanf"}, "unknown sweep 'uniquanf'. Did you mean 'uniquanf-ablation'"),
        ({"tasks": ("wikitxt",)}, "unknown task 'wikitxt'. Did you mean 'wikitext'"),
        ({"bits": (0,)}, "bits=0 is outside 1..16"),
        ({"methods": ("greedy",), "symmetric": True}, "method 'greedy' has no symmetric form"),
        ({"set": {"arc_easy": {"limits": ("3",)}}}, "unknown setting of 'arc_easy' 'limits'"),
        (
            {"set": {"arc_eazy": {"limit": ("3",)}}},
            "unknown name in --set 'arc_eazy'. Did you mean",
        ),
        ({"methods": ("rtn",), "set": {"gptq": {"damp": ("1",)}}}, "unknown name in --set 'gptq'"),
        ({"methods": ()}, "methods is an empty list; name at least one"),
        ({"tasks": ()}, "tasks is an empty list; name at least one"),
        ({"bits": ()}, "bits is an empty list; name at least one"),
        ({"methods": ("none",), "bits": (4,)}, "--bits means nothing to the method 'none'"),
        ({"methods": ("none",), "group_size": 32}, "--group-size means nothing to the method"),
        (
            {"methods": ("unisvq",), "bits": (4, 8)},
            "method 'unisvq' supports 2 to 3 bits, not bits=4",
        ),
    ],
)
def test_requests_that_are_refused_before_any_plan(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_request(Grid(**changes))


@pytest.mark.parametrize("value", ["none", "all", "1.5"])
def test_calibration_takes_numbers_alone(value):
    with pytest.raises(ConfigError, match="is not a whole number; give one$"):
        _ = Grid(set=parse_set([f"calibration.samples={value}"])).calibrations


def test_of_what_is_set_twice_the_last_counts():
    twice = ["gptq.damp=1", "gptq.norm=1", "gptq.damp=2"]
    assert parse_set(twice) == {"gptq": {"damp": ("2",), "norm": ("1",)}}


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 10**30])
def test_seeds_have_64_bits(tmp_path, seed):
    with pytest.raises(ConfigError, match=f"seed={seed}: Input should be "):
        read_grid(None, {"seed": seed})
    with pytest.raises(ConfigError, match=f"uniquanf.seed={seed} has more than 64 bits"):
        get_method("uniquanf", seed=seed)
    assert Grid(seed=2**63 - 1).seeds(draws=True) == (2**63 - 1,)
    with pytest.raises(ConfigError, match="the last seed=9223372036854775808 has more than"):
        Grid(seed=2**63 - 1, replicates=2).seeds(draws=True)
    with pytest.raises(ConfigError, match="replicates=100000000000: Input should be less"):
        read_grid(None, {"replicates": 10**11})


def test_bits_that_some_method_supports_are_no_mistake():
    check_request(Grid(methods=("rtn", "unisvq"), bits=(2, 3, 4)))
    assert len(cells(methods=("rtn", "unisvq"), bits=(2, 3, 4))) == 6


@pytest.mark.parametrize(
    "method, values, message",
    [
        ("gptq", {"damp": "-1"}, "method 'gptq': damp=-1.0 is too small; give 0 or more"),
        ("gptq", {"damp": "nan"}, "gptq.damp='nan' is no finite number"),
        ("gptq", {"block_size": "0"}, "block_size=0 is too small"),
        ("gptq", {"norm": "0"}, "norm=0.0: give more than 0"),
        ("rtn", {"ratios": "0"}, "ratios=0, refinements=2, fits=1: give 1 or more ratios"),
        ("rtn", {"min_ratio": "2"}, "min_ratio=2.0: give a share of the range"),
        ("alternating", {"rounds": "-1"}, "rounds=-1 is too small; give 0 or more"),
        ("flexround", {"lr": "-0.1"}, "lr=-0.1 is too small; give 0 or more"),
        ("omniquant", {"lr_let": "-1"}, "lr_let=-1.0 is too small; give 0 or more"),
    ],
)
def test_values_are_refused_when_the_plan_is_made(method, values, message):
    settings = {key: (value,) for key, value in values.items()}
    with pytest.raises(ConfigError, match=message):
        cells(methods=(method,), bits=(3,), set={method: settings})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_and_sweep_is_a_fine_request(preset):
    check_request(Grid(preset=preset))
    check_request(Grid(preset=preset, sweep="uniquanf-ablation"))


def test_no_bits_are_no_cells():
    assert [cell.method for cell in cells(bits=(), methods=("none", "rtn"))] == ["none"]


def test_settings_of_tasks_and_of_the_calibration():
    grid = Grid(set=parse_set(["arc_easy.limit=7", "mmlu.limit=all", "calibration.samples=3"]))
    assert (
        grid.task_options("arc_easy")["limit"] == 7 and grid.task_options("mmlu")["limit"] is None
    )
    assert grid.calibrations == [{"samples": 3, "length": 256}]
    with pytest.raises(
        ConfigError, match="unknown setting of 'arc_easy' 'limits'. Did you mean 'limit'"
    ):
        Grid(set=parse_set(["arc_easy.limits=7"])).task_options("arc_easy")
    with pytest.raises(ConfigError, match="'many' is not a whole number"):
        Grid(set=parse_set(["arc_easy.limit=many"])).task_options("arc_easy")
    with pytest.raises(ConfigError, match=r"--set 'gptq' is not NAME.PARAM=VALUE"):
        parse_set(["gptq"])


def test_a_sweep_is_a_list_of_variants():
    found = cells(sweep="uniquanf-ablation", bits=(3,))
    assert found[0].method == "none" and len(found) == 1 + len(SWEEPS["uniquanf-ablation"])
    assert len({cell.id for cell in found}) == len(found)
    of_preset = PRESETS["quick"]["settings"]["trained"]
    zero = {"initialization": "separate", "mapping": "full", "period": 1, **of_preset}
    varied = [cell.params for cell in found if cell.method == "uniquanf"]
    assert varied[0] == of_preset and zero in varied
    longer = cells(sweep="uniquanf-ablation", bits=(3,), set={"uniquanf": {"epochs": ("9",)}})
    epochs = [cell.params["epochs"] for cell in longer if cell.method == "uniquanf"]
    assert len(longer) == len(found), "what a variant is about stays as it is"
    assert sorted(epochs) == [0] + [9] * (len(epochs) - 1)
    with pytest.raises(
        ConfigError, match="unknown sweep 'uniquanf-ablatoin'. Did you mean 'uniquanf-ablation'"
    ):
        cells(sweep="uniquanf-ablatoin")
    with pytest.raises(
        ConfigError,
        match="--sweep uniquanf-ablation brings its own methods; leave out --methods rtn",
    ):
        cells(sweep="uniquanf-ablation", methods=("rtn",))


def test_variants_of_a_sweep_that_settings_make_equal_are_told():
    asked = {"sweep": "uniquanf-ablation", "preset": "quick"}
    assert repeated(Grid(**asked)) == []
    assert repeated(Grid(**asked, set={"uniquanf": {"epochs": ("2",)}})) == []
    wider = Grid(**asked, set={"uniquanf": {"window": ("1", "2"), "refits": ("2",)}})
    said = (
        "of --sweep uniquanf-ablation, uniquanf {} is the same as uniquanf under --set uniquanf.{}"
    )
    assert repeated(wider) == [
        f"{said.format('refits=2', 'refits')}, and is run once",
        f"{said.format('window=2', 'window')}, and is run once",
    ]
    of_paper = repeated(Grid(sweep="uniquanf-ablation", preset="paper"))
    assert "uniquanf head=0 is the same as uniquanf under the preset paper" in of_paper[-1]
    assert repeated(Grid(methods=("rtn",), set={"rtn": {"ratios": ("16", "16")}})) == []


def test_the_paper_preset_carries_the_settings_of_the_papers():
    grid = Grid(
        preset="paper", methods=("rtn", "uniquanf"), bits=(3,), set={"uniquanf": {"lr": ("0.01",)}}
    )
    rtn, found = expand(grid, identity(grid))
    assert rtn.scheme.group_size == 128 and grid.calibrations == [{"samples": 128, "length": 2048}]
    made = get_method(found.method, **found.params)
    assert (made.epochs, made.batch_size, made.lr, made.lr_alpha) == (20, 1, 0.01, 5e-4)
    again = parse_set(
        [part for part in cell_command(grid, found).split() if part.startswith("uniquanf.")]
    )
    assert (
        cells(preset="paper", methods=("uniquanf",), bits=(3,), set=again)[0].params == found.params
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_the_settings_of_a_preset_are_parameters_of_methods(preset):
    for name in PRESETS[preset].get("settings", {}):
        methods = [name] if name != "trained" else ["flexround", "omniquant", "unisvq"]
        assert cells(preset=preset, methods=tuple(methods), bits=(3,))


TRAINED = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Mine:
    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "ours"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    epochs: int = 1
    batch_size: int = 4
    loss: str = "mse"
    mixing: float = 1.0
    head: float = 0.0

    def training_tokens(self, tokens):
        return tokens * self.epochs

    def quantize_block(self, block, inputs, targets, scheme):
        raise NotImplementedError
"""


def test_a_method_that_says_it_trains_gets_what_a_preset_fixes_for_training(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(TRAINED)
    registry.load_plugin(path)
    trained = PRESETS["paper"]["settings"]["trained"]
    assert Grid(preset="paper").method_settings("mine") == trained
    assert Grid(preset="paper").method_settings("gptq") == {}
    [cell] = cells(preset="paper", methods=("mine",), bits=(3,))
    assert cell.params == {"epochs": 20, "batch_size": 1, "mixing": 0.5}
    path.write_text(TRAINED.replace("trains: ClassVar[bool] = True", ""))
    registry.load_plugin(path)
    assert Grid(preset="paper").method_settings("mine") == {}


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation": "of another version of lm-eval"},
        {"batch_size": 16},
        {"device": "cuda"},
        {"dtype": "bfloat16"},
        {"stored_as": {"smollm2-135m": "gptq 4b g128"}},
    ],
)
def test_what_changes_a_number_makes_another_cell(change):
    grid = Grid(methods=("none",))
    (before,) = expand(grid, identity(grid))
    (after,) = expand(grid, identity(grid, **change))
    assert before.id != after.id


def test_an_artifact_is_shared_where_only_the_evaluation_differs():
    grid = Grid(methods=("rtn",), bits=(3,))

    def artifact(**changes):
        (cell,) = expand(grid, identity(grid, **changes))
        return cell.artifact

    assert artifact() == artifact(evaluation="other", batch_size=1, dtype="bfloat16")
    assert artifact() != artifact(device="cuda")
    on_gpu = artifact(device="cuda", dtype="float32")
    assert on_gpu != artifact(device="cuda", dtype="bfloat16"), "there it calibrates in the dtype"


def test_the_code_that_all_methods_are_applied_by_is_part_of_what_is_quantized():
    grid = Grid(methods=("none", "rtn"), bits=(3,))
    before = expand(grid, identity(grid))
    after = expand(grid, identity(grid, quantization="other"))
    assert before[0] == after[0] and before[1].artifact != after[1].artifact


def test_a_quantized_model_as_it_is_is_not_asked_what_compares_with_the_unquantized():
    grid = Grid(methods=("none", "rtn"), bits=(3,), requantize=True)
    tasks = (*TASKS, TaskSpec(name="divergence", data="d", sha256="2"))
    asked = {"tasks": tasks, "comparing": ("divergence",)}
    stored = {"stored_as": {"smollm2-135m": "gptq 4b g128"}}
    assert [cell.tasks for cell in expand(grid, identity(grid, **asked))] == [tasks, tasks]
    plain, rounded = expand(grid, identity(grid, **asked, **stored))
    assert plain.tasks == TASKS and rounded.tasks == tasks
    assert plain.stored_as == rounded.stored_as == "gptq 4b g128"
    assert (plain.label, rounded.label) == ("gptq 4b g128", "rtn 3b g64")


def test_the_code_that_reads_quantized_models_is_part_of_those_that_others_quantized():
    grid = Grid(methods=("none",))
    stored = {"stored_as": {"smollm2-135m": "gptq 4b g128"}}
    (before,) = expand(grid, identity(grid, **stored))
    (after,) = expand(grid, identity(grid, quantization="other", **stored))
    assert before.id != after.id


def test_younger_facts_leave_the_ids_of_older_records():
    """As written by the version before: the id is that of the fields it knew."""
    grid = Grid(methods=("rtn",), bits=(3,))
    (cell,) = expand(grid, identity(grid, quantization="", evaluation="", batch_size=None))
    younger = {"evaluation", "batch_size", "device", "stored_as", "recipe", "quantization"}
    known = cell.model_dump(mode="json", exclude=younger)
    for task in known["tasks"]:
        for name in ("spread", "max_gen_toks", "chat_template", "bos"):
            assert not task.pop(name)
    text = json.dumps(known, sort_keys=True, separators=(",", ":"))
    assert cell.id == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_replicates_are_draws_of_the_calibration_sample_and_of_nothing_else():
    found = cells(methods=("none", "rtn", "gptq"), bits=(3,), seed=5, replicates=3)
    assert [(cell.method, cell.seed) for cell in found] == [
        ("none", 0),
        ("rtn", 0),
        ("gptq", 5),
        ("gptq", 6),
        ("gptq", 7),
    ]
    assert len({cell.id for cell in found}) == 5


def test_a_method_with_a_seed_is_drawn_without_calibration(tmp_path):
    file = tmp_path / "stochastic_rounding.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from qbench.methods.rtn import RTN\n\n\n@dataclass(frozen=True)\nclass Stochastic(RTN):\n"
        '    name: ClassVar[str] = "stochastic-rounding"\n    seed: int = 0\n'
    )
    registry.load_plugin(file)
    found = cells(methods=("stochastic-rounding",), bits=(3,), seed=5, replicates=2)
    assert [(cell.calibration, cell.seed) for cell in found] == [(None, 5), (None, 6)]


def test_what_draws_nothing_carries_no_seed():
    first, second = (cells(methods=("none", "rtn"), bits=(3,), seed=k) for k in (0, 1))
    assert [cell.id for cell in first] == [cell.id for cell in second]


def test_the_command_of_a_draw_makes_that_draw_alone():
    grid = Grid(methods=("gptq",), bits=(3,), preset="gate")
    draws = cells(methods=("gptq",), bits=(3,), preset="gate")
    assert [cell.seed for cell in draws] == [0, 1, 2, 3]
    command = cell_command(grid, draws[2])
    assert "--seed 2" in command and "--replicates 1" in command


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("Qwen/Qwen3-8B@main", "Qwen3-8B-main"),
        ("../llama/", "llama"),
        (".", "sub"),
        ("..", "llama"),
        ("../sub/..", "llama"),
        ("/", "model"),
    ],
)
def test_a_run_has_a_folder_of_its_own_whatever_path_its_model_has(
    tmp_path, monkeypatch, model, folder
):
    (tmp_path / "llama" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "llama" / "sub")
    assert Grid(model=(model,)).folder == Path("runs") / folder
