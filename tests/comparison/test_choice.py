"""Which cells and draws are compared, what of them decides, and what they cost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from command_line import run_command
from compared_cells import CALIBRATION, cell, side
from qbench.comparison.costs import costs
from qbench.comparison.endpoints import LEAST_KL, Endpoint
from qbench.comparison.matching import Side, chosen, matched
from qbench.comparison.verdicts import Verdict, compare
from qbench.comparison.written import cost_lines, flip_lines
from qbench.contracts import Scheme
from qbench.errors import ConfigError
from qbench.records import Decoding, Latency, Product
from qbench.scheme import LayerRule
from qbench.stats.difference import mean_interval
from qbench.stats.sequential import Look

TEXT = ("--tasks", "wikitext")


def labels(verdict: Verdict) -> list[str]:
    return [entry.label for entry in verdict.cells]


# ---- draws


def test_a_look_sees_the_first_draws_alone(tmp_path: Path) -> None:
    """The later draws are far worse, and one of them crashed."""
    side(tmp_path / "base", *(cell(seed=k) for k in range(4)))
    others = [cell(seed=k, damage=0.2 + 0.5 * (k > 1), source="1" * 12) for k in range(4)]
    others[3] = others[3].model_copy(update={"status": "failed", "reason": "out of memory"})
    side(tmp_path / "candidate", *others)
    run = ("compare", tmp_path / "base", tmp_path / "candidate", *TEXT, "--json", "--look")
    seen = json.loads(run_command(*run, "2/4").out)
    assert seen["cells"][0]["findings"][0]["harm"]["draws"] == 2
    assert seen["cells"][0]["findings"][0]["harm"]["value"] == pytest.approx(0.0)
    assert seen["looks"][-1]["draws"] == 2 and seen["cells"][0]["notes"] == []
    assert "out of memory" in run_command(*run, "4/4").out


def test_a_look_after_more_draws_than_there_are_is_refused(tmp_path: Path) -> None:
    whole = side(tmp_path / "run", *(cell(seed=k) for k in range(2)), cell("rtn"))
    verdict = compare(whole, whole, tasks=("wikitext",), look=Look(3))
    assert [entry.status for entry in verdict.cells] == ["not comparable", "compared"]
    assert "2 draws are in common, and the look is after 3" in verdict.cells[0].reasons[0]


def test_draws_without_a_like_are_named(tmp_path: Path) -> None:
    base = side(tmp_path / "base", *(cell(seed=k) for k in range(4)))
    candidate = side(tmp_path / "mine", *(cell(seed=k, source="1" * 12) for k in range(3)))
    (entry,) = compare(base, candidate, tasks=("wikitext",)).cells
    assert entry.notes == ("seeds of the base without a like do not count: 3",)
    assert entry.findings[0].harm.draws == 3


def test_two_cells_that_are_named_are_compared_whatever_their_schemes(tmp_path: Path) -> None:
    base = side(tmp_path / "base", cell("rtn", bits=4))
    mine = side(tmp_path / "mine", cell("gptq"))
    named = (chosen(base, "rtn 4b g64"), chosen(mine, "gptq 3b g64"))
    assert [match.label for match in matched(*named)] == ["rtn 4b g64 -> gptq 3b g64"]
    # Unnamed they may be what a changed grid has left.
    assert len(matched(base, mine)) == 2


def test_fresh_draws_of_both_are_compared_where_there_are_several(tmp_path: Path) -> None:
    """The interval has the noise of both, which shared draws would not have."""
    levels = (0.20, 0.22, 0.19, 0.21)
    base = side(tmp_path / "base", *(cell(seed=k, damage=v) for k, v in enumerate(levels)))
    fresh = side(tmp_path / "mine", *(cell(seed=9 + k, damage=v) for k, v in enumerate(levels)))
    (entry,) = compare(base, fresh, tasks=("wikitext",)).cells
    assert entry.status == "compared" and entry.findings[0].harm.draws == 4
    assert "no seed is in common" in entry.notes[0]
    (shared,) = compare(base, base, tasks=("wikitext",)).cells
    assert shared.findings[0].harm.stderr == 0 and shared.notes == ()
    fixed = side(tmp_path / "fixed", cell("rtn"))
    notes = compare(fixed, fresh, tasks=("wikitext",)).cells[0].notes
    assert not [note for note in notes if "seed" in note]


def test_answers_that_changed_are_those_of_all_draws(tmp_path: Path) -> None:
    base = side(tmp_path / "base", *(cell(seed=k, damage=0.0) for k in range(2)))
    others = [cell(seed=k, damage=2.0 * k, source="1" * 12) for k in range(2)]
    candidate = side(tmp_path / "mine", *others)
    (finding,) = compare(base, candidate, tasks=("arc_easy",)).cells[0].findings
    assert finding.flips.items == 200
    assert (finding.flips.lost - finding.flips.gained) / 200 == pytest.approx(finding.harm.value)
    assert "of 200 answers in 2 draws" in flip_lines(finding)[0]


# ---- cells


def test_names_of_methods_may_have_colons(tmp_path: Path) -> None:
    run = tmp_path / "run"
    side(run, cell(), cell("gptqmodel:gptq", calibration=CALIBRATION))
    done = run_command("compare", f"{run}:gptq", f"{run}:gptqmodel:gptq", *TEXT)
    assert done.code == 0 and "gptq 3b g64 -> gptqmodel:gptq 3b g64" in done.out, done.err
    place = ("--baselines", tmp_path / "baselines")
    assert run_command("baseline", "save", f"{run}:gptqmodel:gptq", "peer", *place).code == 0
    shown = run_command("baseline", "show", "peer:gptqmodel:gptq", *place).out
    assert "gptqmodel:gptq 3b" in shown
    assert f"{run}x is neither" in run_command("compare", f"{run}x:a:b", run).err


@pytest.mark.parametrize("preset", [{}, {"epochs": 2}])
def test_a_methods_name_stands_for_its_defaults_against_a_whole_label(
    tmp_path: Path, preset: dict[str, int]
) -> None:
    """With three bits and four, default parameters (those of a preset), and one that differs."""
    made = [cell(params=preset), cell(bits=4, params=preset), cell(params={**preset, "damp": 0.1})]
    whole = side(tmp_path / "run", *made)
    default, _, variant = (record.cell.label for record in made)
    assert len(chosen(whole, "gptq").quantized) == 3
    assert [row.cell.label for row in chosen(whole, default).quantized] == [default]
    both = chosen(whole, "gptq"), chosen(whole, variant)
    assert [match.label for match in matched(*both)] == [f"{default} -> {variant}"]
    assert [match.label for match in matched(*both[::-1])] == [f"{variant} -> {default}"]
    assert len(matched(both[0], both[0])) == 3


def test_of_a_sweep_the_variant_that_most_parameters_agree_with_stands_for_the_method(
    tmp_path: Path,
) -> None:
    """The preset gives epochs=1 to all variants but the one that is about them."""
    swept = [{"epochs": 1}, {"epochs": 0}, {"epochs": 1, "damp": 0.1}, {"epochs": 1, "window": 2}]
    made = [cell(params=params) for params in swept]
    whole = side(tmp_path / "run", *made, cell("awq", params={"epochs": 1}))
    method, other = chosen(whole, "gptq"), chosen(whole, "awq")
    labels = "gptq 3b g64 epochs=1", "awq 3b g64 epochs=1"
    assert [match.label for match in matched(method, other)] == [" -> ".join(labels)]
    assert [match.label for match in matched(other, method)] == [" -> ".join(labels[::-1])]
    alike = side(tmp_path / "alike", made[1])
    pairs = matched(method, chosen(alike, "gptq"))
    assert [match.label for match in pairs if match.draws()] == ["gptq 3b g64 epochs=0"]


def test_a_name_that_stands_for_several_variants_is_refused_with_their_labels(
    tmp_path: Path,
) -> None:
    side(tmp_path / "run", *(cell(params={"damp": damp}) for damp in (0.1, 0.2)), cell("awq"))
    run = tmp_path / "run"
    done = run_command("compare", f"{run}:gptq", f"{run}:awq", *TEXT)
    assert done.code == 2 and not done.out
    assert (
        f"{run}:gptq stands for several variants, and none of them is on the other side; give one "
        "of them: gptq 3b g64 damp=0.1, gptq 3b g64 damp=0.2"
    ) in " ".join(done.err.split())


def test_variants_without_a_like_in_bits_or_model_are_missing_and_not_refused(
    tmp_path: Path,
) -> None:
    """Other bits or another model are to blame, not a name that stands for several variants."""
    swept = [{"damp": damp} for damp in (0.1, 0.2)]
    whole = side(tmp_path / "a", *(cell(params=params) for params in swept))
    others = {
        "bits": [cell(bits=4, params=params) for params in swept],
        "model": [cell(params=params, model="other") for params in swept],
        "method": [cell("awq", bits=4)],
    }
    for name, records in others.items():
        other = side(tmp_path / name, *records)
        method = records[0].cell.method
        verdict = compare(chosen(whole, "gptq"), chosen(other, method), tasks=("wikitext",))
        assert {entry.status for entry in verdict.cells} == {"missing"}, name


def test_a_draw_is_chosen_by_the_label_that_tells_it_from_the_others(tmp_path: Path) -> None:
    whole = side(tmp_path / "run", *[cell(seed=seed) for seed in range(3)])
    plain = whole.quantized[0].cell.label
    (record,) = chosen(whole, f"{plain} seed=1").quantized
    assert record.cell.seed == 1 and len(chosen(whole, plain).quantized) == 3


def test_a_sweep_of_the_calibration_is_compared_cell_by_cell(tmp_path: Path) -> None:
    """Also cells whose rules for layers have the same number."""
    made = []
    for samples in (8, 32):
        calibration = CALIBRATION.model_copy(update={"samples": samples})
        for layer in ("*.q_proj", "*.k_proj"):
            scheme = Scheme(3, 64, rules=(LayerRule(layer, 8),))
            made.append(cell(calibration=calibration, scheme=scheme))
    side(tmp_path / "run", *made)
    done = run_command("compare", tmp_path / "run", tmp_path / "run", *TEXT, "--json")
    seen = [entry["label"] for entry in json.loads(done.out)["cells"]]
    assert len(seen) == 4 and "older" not in done.err
    assert sum("calibration 32x64 of " in label for label in seen) == 2
    half = side(tmp_path / "half", made[0])
    verdict = compare(half, Side("run", tmp_path / "run", tuple(made)), tasks=("wikitext",))
    assert [entry.status for entry in verdict.cells].count("missing") == 3


def test_a_whole_label_means_cells_of_one_choice_of_rules(tmp_path: Path) -> None:
    schemes = [Scheme(3, 64, rules=(LayerRule("*.down_proj", bits),)) for bits in (2, 8)]
    made = [cell("rtn", scheme=scheme) for scheme in schemes]
    whole = side(tmp_path / "run", cell("rtn"), *made)
    for record in made:
        named = (chosen(whole, "rtn 3b g64"), chosen(whole, record.cell.label))
        (match,) = matched(*named)
        assert [other.id for _, other in match.draws()] == [record.id]
        assert match.label == f"rtn 3b g64 -> {record.cell.label}"
    (match,) = matched(*(chosen(whole, record.id) for record in made))
    assert match.label == "rtn 3b g64 *.down_proj=2 -> rtn 3b g64 *.down_proj=8"
    with pytest.raises(ConfigError, match=r"it has rtn 3b g64, rtn 3b g64 \*\.down_proj=2, rtn"):
        chosen(whole, "rtn 3b g64 +1 rule")
    # Where one name stands for several schemes, the cells are those of like schemes.
    both = replace(whole, records=tuple(made), label=made[0].cell.label)
    assert len(matched(both, both)) == 2


# ---- endpoints


def test_a_task_that_was_asked_and_has_no_score_is_named(tmp_path: Path) -> None:
    record = cell()
    bare = record.model_copy(update={"scores": record.scores[:1]})
    base = side(tmp_path / "base", bare)
    for task in ("divergence", "arc_esy"):
        verdict = compare(base, base, tasks=("wikitext", task))
        assert verdict.outcome == "not comparable"
        (reason,) = verdict.cells[0].reasons
        assert reason.startswith(f"{task}: no score has a margin") and "scored are wiki" in reason


def test_divergences_that_are_rounding_count_as_the_least() -> None:
    """A candidate that diverges is worse than a base that does not; two that do not are nothing."""
    endpoint = Endpoint(("divergence", "kl_mean", "none"), math.log1p(0.05), False)
    noise = np.linspace(-1e-5, 1e-5, 50)[None]
    base, candidate = 1e-6 + noise, 3e-4 + noise
    assert endpoint.refusal(base, candidate) is None
    harm = endpoint.harm(base, candidate, None)
    assert harm.value == pytest.approx(math.log(3e-4 / LEAST_KL)) and harm.low > endpoint.margin
    assert endpoint.harm(candidate, base, None).value == pytest.approx(-harm.value)
    assert "both diverge by less" in endpoint.refusal(base, base)


# ---- costs


def test_latencies_are_ratios_to_what_took_turns_with_them(tmp_path: Path) -> None:
    """A candidate that was timed on a machine twice as slow is not slower by that."""

    def timed(machine: float, packed: float) -> Latency:
        spread = tuple(machine * packed * k for k in (1.0, 0.9, 1.2))
        dense = tuple(machine * k for k in (1.0, 1.0, 1.0))
        rate = tuple(k / machine / packed for k in (1.0, 0.9, 1.2))
        decoding = Decoding(
            prompt=1, tokens=1, packed=rate, dense=tuple(1 / k for k in dense),
            packed_prefill=rate, dense_prefill=rate, packed_peak_bytes=1, dense_peak_bytes=1,
        )  # fmt: skip
        product = Product(
            out=64, columns=64, rows=1, layers=3, kernel="k", seconds=spread, dense=dense
        )
        return Latency(
            device="cpu", threads=1, dtype="float32", products=(product,), decoding=decoding
        )

    base = cell().model_copy(update={"latency": timed(1.0, 0.5)})
    candidate = cell().model_copy(update={"latency": timed(2.0, 0.55)})
    both = costs([(base, candidate)])
    assert both["ms of products, batch 1"].ratio == pytest.approx((2.2, 2.2, 2.2))
    cost = both["products over dense, batch 1"]
    down = math.hypot(math.log(1 / 0.9), math.log(1.2))
    ends = (1.1 * math.exp(-down), 1.1 * math.exp(down))
    assert (cost.base, cost.candidate) == pytest.approx((0.5, 0.55))
    assert cost.ratio == pytest.approx((1.1, *ends))
    assert both["tokens per second over dense"].ratio[0] == pytest.approx(1 / 1.1)


def test_costs_of_several_draws_have_an_interval(tmp_path: Path) -> None:
    base = side(tmp_path / "base", *(cell(seed=k, quantize_seconds=2.0 + k) for k in range(3)))
    others = [cell(seed=k, quantize_seconds=(2.0 + k) * (1 + 0.1 * k)) for k in range(3)]
    candidate = side(tmp_path / "mine", *others)
    (entry,) = compare(base, candidate, tasks=("wikitext",)).cells
    logs = mean_interval(np.log([1.0, 1.1, 1.2]))
    cost = entry.costs["seconds to quantize"]
    assert cost.ratio == pytest.approx(tuple(np.exp([logs.value, logs.low, logs.high])))
    lines = cost_lines(entry)
    assert lines[0] == "bits per weight 3.25 -> 3.25 (\u00d71.00)"
    assert "seconds to quantize 3 -> 3.367 (\u00d71.10 [0.87, 1.38])" in lines


@pytest.mark.parametrize("turned", [False, True])
def test_one_measurement_in_all_draws_has_no_interval(tmp_path: Path, turned: bool) -> None:
    """Of round-to-nearest there is one cell: the noise of its time is that of all ratios."""
    base = side(tmp_path / "base", cell("rtn", quantize_seconds=2.0))
    others = [cell(seed=k, quantize_seconds=2.0 + k) for k in range(3)]
    candidate = side(tmp_path / "mine", *others)
    sides = (candidate, base) if turned else (base, candidate)
    (entry,) = compare(*sides, tasks=("wikitext",)).cells
    ratio = math.exp(np.log([1.0, 1.5, 2.0]).mean())
    expected = 1 / ratio if turned else ratio
    assert entry.costs["seconds to quantize"].ratio == pytest.approx((expected,) * 3)
    (note,) = [text for text in entry.notes if "measured once" in text]
    assert note.startswith("seconds to quantize") and "bits" not in note
