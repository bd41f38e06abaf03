"""Cells held against each other: what is comparable, the words, the exit codes, the baselines."""

from __future__ import annotations

import json
import math
import os
import re
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from command_line import run_command
from compared_cells import CALIBRATION, TASKS, cell, side
from paired_items import ITEMS
from qbench.commands.questions import questions
from qbench.comparison.changed_answers import answer
from qbench.comparison.comparable import differences
from qbench.comparison.endpoints import MARGINS, Endpoint, read_margins
from qbench.comparison.engine import engine_reasons
from qbench.comparison.matching import Side, chosen, matched
from qbench.comparison.needed import needed
from qbench.comparison.pairs import TIMES, Pairs
from qbench.comparison.samples import Samples, keys
from qbench.comparison.verdicts import NO_DRAWS, Looked, _identical, compare
from qbench.comparison.written import _margin, as_json, harm_text, markdown
from qbench.errors import ConfigError
from qbench.experiment.store import Store
from qbench.records import Judging, Record, TaskSpec, digest
from qbench.stats.sequential import looks
from qbench.tasks.data import open_source

TEXT = ("--tasks", "wikitext")
CLUSTERS = [f"article-{k // 4}" for k in range(ITEMS)]


def words(verdict: object) -> dict[str, str]:
    return {
        finding.endpoint.key[1]: finding.word for cell in verdict.cells for finding in cell.findings
    }


# ---- items and pairs


def test_items_are_found_whatever_their_order_and_damaged_files_are_none(tmp_path: Path) -> None:
    base = side(tmp_path, cell(damage=0.1), cell(bits=4, damage=0.2))
    key = ("wikitext", "perplexity", "none")
    before = Pairs(base.records, tmp_path).between(*base.records, key)
    path = tmp_path / base.records[1].scores[0].samples
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[::-1]))
    after = Pairs(base.records, tmp_path).between(*base.records, key)
    assert after.difference.value == pytest.approx(before.difference.value) == pytest.approx(0.1)
    assert after.difference.stderr == pytest.approx(before.difference.stderr)
    path.write_text("\n".join(lines[:-1]))
    assert Pairs(base.records, tmp_path).between(*base.records, key) is None
    path.write_text("{")
    assert Pairs(base.records, tmp_path).between(*base.records, key) is None
    assert Pairs(base.records, None).between(*base.records, key) is None


def test_a_path_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "secret.jsonl").write_text('{"filter": "none"}\n')
    samples = Samples(tmp_path / "run")
    assert samples.rows("../secret.jsonl") == ()
    assert samples.rows(str(tmp_path / "secret.jsonl")) == ()


def test_equal_documents_are_told_apart() -> None:
    rows = [
        {"filter": "none", "doc_hash": "a"},
        {"filter": "none", "doc_hash": "a"},
        {"filter": "none", "doc_hash": "a", "subject": "law"},
        {"filter": "none", "prompt_hash": "p", "target_hash": "t"},
    ]
    assert len(set(keys(rows))) == 4


def test_a_score_that_is_no_mean_of_its_rows_is_not_paired(tmp_path: Path) -> None:
    made = side(tmp_path, cell())
    score = made.records[0].scores[0]
    assert Samples(tmp_path).items(score) is not None
    assert Samples(tmp_path).items(score.model_copy(update={"value": score.value + 1})) is None
    assert Samples(tmp_path).items(score.model_copy(update={"metric": "kl_p99"})) is None


def test_clusters_of_the_rows_widen_the_interval(tmp_path: Path) -> None:
    """All items of a cluster alike: the interval is that of the clusters."""
    key = ("gsm8k", "gold_nll", "none")
    widths = {}
    for name, clusters in (("alone", None), ("articles", CLUSTERS)):
        made = side(tmp_path / name, cell(damage=0.1), cell(bits=4), clusters=clusters)
        path = tmp_path / name / made.records[1].scores[-1].samples
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        shift = np.random.default_rng(1).standard_normal(ITEMS // 4)
        shift -= shift.mean()
        for index, row in enumerate(rows):
            row["gold_nll"] += shift[index // 4]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = Pairs(made.records, tmp_path / name).between(*made.records, key).difference
        widths[name] = found.high - found.low
        assert found.clusters == (ITEMS if clusters is None else ITEMS // 4)
    assert widths["articles"] == pytest.approx(2 * widths["alone"], rel=0.1)


# ---- verdicts


@pytest.mark.parametrize(
    ("damage", "outcome", "perplexity"),
    [(0.2, "pass", "same"), (0.3, "worse", "worse"), (0.1, "pass", "better")],
)
def test_the_verdict_goes_by_the_margin(
    tmp_path: Path, damage: float, outcome: str, perplexity: str
) -> None:
    base = side(tmp_path / "base", cell())
    candidate = side(tmp_path / "candidate", cell(damage=damage, source="1" * 12))
    verdict = compare(base, candidate, tasks=("wikitext", "divergence", "gsm8k"))
    assert verdict.outcome == outcome
    assert words(verdict)["perplexity"] == words(verdict)["gold_nll"] == perplexity
    assert "noise of draws is not included" in verdict.cells[0].notes[0]
    assert f"## {outcome}:" in markdown(verdict)
    assert json.loads(json.dumps(as_json(verdict), allow_nan=False))["outcome"] == outcome


@pytest.mark.parametrize(
    ("metric", "margin", "shown"),
    [
        ("perplexity", 0.02, "\u00d71.020"),
        ("perplexity", 0.003, "\u00d71.0030"),
        ("perplexity", 1000.0, f"\u00d7{math.exp(700):.2f}"),
        ("kl_mean", math.log1p(0.05), "\u00d71.050"),
        ("acc", 0.01, "+1.0"),
        ("acc", 0.0003, "+0.030"),
        ("gold_nll", 0.02, "+0.020"),
        ("gold_nll", 0.0004, "+0.00040"),
    ],
)
def test_no_margin_is_rounded_away(metric: str, margin: float, shown: str) -> None:
    endpoint = Endpoint(("task", metric, "none"), margin, metric == "acc")
    assert _margin(endpoint) == shown


def test_few_answers_are_undecided_and_the_items_that_would_decide_are_named(
    tmp_path: Path,
) -> None:
    base, candidate = (side(tmp_path / name, cell(source=name[0] * 12)) for name in ("1", "2"))
    verdict = compare(base, candidate)
    assert verdict.outcome == "undecided" and words(verdict)["acc"] == "undecided"
    (finding,) = [one for one in verdict.cells[0].findings if one.endpoint.key[1] == "acc"]
    assert "items, for 100" in finding.needed
    assert compare(base, candidate, margins=read_margins(["acc=0.2"])).outcome == "pass"


def test_other_threads_are_noted(tmp_path: Path) -> None:
    sides = []
    for threads in (1, 2):
        record = cell(source=str(threads) * 12)
        hardware = {"cpu": "Zen", "gpu": None, "threads": threads}
        environment = {**record.environment, "hardware": hardware}
        elsewhere = record.model_copy(update={"environment": environment})
        sides.append(side(tmp_path / str(threads), elsewhere))
    notes = " ".join(compare(*sides).cells[0].notes)
    assert "quantized on Zen with 1 thread, and on Zen with 2 threads: last digits" in notes
    assert "quantized on" not in " ".join(compare(sides[0], sides[0]).cells[0].notes)


def test_loops_in_torch_are_noted_where_the_other_side_has_them_in_c(tmp_path: Path) -> None:
    sides = []
    for loops in ("C", "torch"):
        record = cell()  # of the same code
        hardware = {"cpu": "Zen", "gpu": None, "threads": 1}
        environment = {**record.environment, "hardware": hardware, "loops": loops}
        made = record.model_copy(update={"environment": environment})
        sides.append(side(tmp_path / loops, made))
    notes = " ".join(compare(*sides).cells[0].notes)
    assert "on Zen with 1 thread, and on Zen with 1 thread and loops in torch: last" in notes
    assert "seconds to quantize: measured on other hardware, threads or loops" in notes


def test_the_memory_of_a_watched_plug_in_is_noted(tmp_path: Path) -> None:
    ours = cell().model_copy(update={"quantize_peak_bytes": 5_000_000})
    theirs = ours.model_copy(update={"quantize_watched": True})
    first, second = side(tmp_path / "ours", ours), side(tmp_path / "theirs", theirs)
    note = "peak MB: of the {} alone it holds copies that the watch on a plug-in makes"
    for sides, name in (((first, second), "candidate"), ((second, first), "base")):
        verdict = compare(*sides)
        assert any(said.startswith(note.format(name)) for said in verdict.cells[0].notes)
        assert note.format(name) in markdown(verdict)
    assert "watch" not in markdown(compare(second, second)) + markdown(compare(first, first))


def test_items_that_are_the_same_to_the_last_digit_leave_nothing_to_chance(tmp_path: Path) -> None:
    """Right and wrong answers alone leave 3 / n open; with the same hash there is no difference."""
    made = side(tmp_path / "run", cell())
    (mine,) = made.records
    (score,) = [score for score in mine.scores if score.task == "arc_easy"]
    digest = sha256((tmp_path / "run" / str(score.samples)).read_bytes()).hexdigest()
    known = mine.model_copy(update={"evaluation": {"arc_easy": {"samples_sha256": digest}}})
    whole = Side("run", tmp_path / "run", (known,))
    verdict = compare(whole, whole)
    assert verdict.outcome == "pass" and words(verdict)["acc"] == "same"
    (finding,) = [one for one in verdict.cells[0].findings if one.endpoint.key[1] == "acc"]
    assert (finding.harm.value, finding.harm.low, finding.harm.high) == (0, 0, 0)
    assert words(compare(made, made))["acc"] == "undecided"
    written = Endpoint(("arc_easy", "exact_match", "none"), 0.01, True)
    assert _identical(finding.endpoint, [(known, known)])
    assert not _identical(written, [(known, known)]), "unlike models may write the same texts"


def test_draws_are_shared_and_their_spread_is_in_the_interval(tmp_path: Path) -> None:
    """A base that differs from draw to draw: one draw says worse, four say that it is noise."""
    levels = (0.2, 0.3, 0.24, 0.28)
    others = (0.32, 0.2, 0.3, 0.24)
    base = side(tmp_path / "base", *(cell(seed=k, damage=v) for k, v in enumerate(levels)))
    candidate = side(
        tmp_path / "candidate",
        *(cell(seed=k, damage=v, source="1" * 12) for k, v in enumerate(others)),
    )
    text = ("wikitext",)
    alone = [Side(one.name, one.folder, one.records[:1]) for one in (base, candidate)]
    assert compare(*alone, tasks=text).outcome == "worse"
    verdict = compare(base, candidate, tasks=text)
    (finding,) = verdict.cells[0].findings
    assert finding.harm.draws == 4 and finding.word == "undecided"
    assert finding.harm.value == pytest.approx(np.mean(others) - np.mean(levels))
    assert "draws, for 4" in finding.needed
    assert verdict.cells[0].notes == ()


def test_items_alone_are_not_asked_where_the_draws_spread_too_much() -> None:
    """Effects of draws, of items, and of both, which are not by chance what they are on average."""
    rows = np.array([[-1.0], [1.0], [-1.0], [1.0]])
    columns = np.tile([-1.0, -1.0, 1.0, 1.0], 10)[None]
    both = np.tile([-1.0, 1.0], 20)[None] * np.array([[-1.0], [-1.0], [1.0], [1.0]])
    zeros = np.zeros((4, 40))

    def asked(metric: str, table: np.ndarray) -> str:
        endpoint = Endpoint(("task", metric, "none"), 0.02, higher_is_better=False)
        harm, spread = endpoint.harm(zeros, table, None), endpoint.spread(zeros, table, None)
        return needed(endpoint, harm, spread, is_all=False)

    wide = asked("perplexity", 0.025 * rows + 0.1 * columns + 0.05 * both)
    assert re.fullmatch(r"\d+ draws of [\d,]+ items, for 4 of 40", wide)
    narrow = asked("perplexity", 0.001 * rows + 0.1 * columns + 0.05 * both)
    assert re.fullmatch(r"[\d,]+ items, for 40", narrow)
    assert re.fullmatch(r"\d+ draws, for 4", asked("perplexity", 0.025 * rows + 0.001 * both))
    assert asked("acc", zeros) == "150 items, for 40", "3 / n of all may have changed"


@pytest.mark.parametrize(
    ("limit", "ending"),
    [
        (ITEMS, f"items, for {ITEMS}"),
        (ITEMS + 1, f"items, for {ITEMS}, all that these data give"),
        (None, f"items, for {ITEMS}, all that these data give"),
    ],
)
def test_more_items_than_the_data_give_are_said_to_be_more(
    tmp_path: Path, limit: int | None, ending: str
) -> None:
    tasks = tuple(spec.model_copy(update={"limit": limit}) for spec in TASKS)
    pair = [cell(source=name * 12, tasks=tasks) for name in "12"]
    base, candidate = (side(tmp_path / each.id, each) for each in pair)
    findings = compare(base, candidate).cells[0].findings
    (needed,) = [one.needed for one in findings if one.endpoint.key[1] == "acc"]
    assert needed.endswith(ending)


def test_a_look_judges_at_its_share_of_the_errors(tmp_path: Path) -> None:
    """Three draws that would say worse by themselves do not, at the second of three looks."""
    base = side(tmp_path / "base", *(cell(seed=k) for k in range(3)))
    others = [cell(seed=k, damage=0.25 + 0.015 * k, source="1" * 12) for k in range(3)]
    candidate = side(tmp_path / "candidate", *others)
    text = ("wikitext",)
    alone = compare(base, candidate, tasks=text)
    second = compare(base, candidate, tasks=text, look=looks(4)[1])
    assert alone.outcome == "worse" and second.outcome == "undecided"
    assert alone.level == pytest.approx(0.95) and second.level == pytest.approx(0.9897, abs=1e-4)
    ends = [one.cells[0].findings[0].harm for one in (alone, second)]
    assert ends[1].low < ends[0].low and ends[1].high > ends[0].high
    taken = (Looked(2, 0.99, "undecided"), Looked(3, second.level, "worse"))
    seen = markdown(replace(second, looks=taken, draws=4))
    assert "- look after 3 of 4 draws, 98.97 % intervals: worse" in seen
    assert "- stopped after 3 of 4 draws: the verdict is in" in seen
    assert "by Holm over all rows and for the looks" in seen
    whole = replace(second, looks=(*taken, Looked(4, 0.96, "undecided")), draws=4)
    assert whole.stopped == "all 4 draws were made" and second.stopped == ""
    crashed = replace(second, looks=(Looked(2, 0.99, "not comparable"),), draws=4)
    assert crashed.stopped == "stopped after 2 of 4 draws: nothing can be compared"


def test_what_is_not_random_has_one_draw_that_goes_with_all(tmp_path: Path) -> None:
    base = side(tmp_path / "base", cell("rtn", damage=0.4))
    candidate = side(tmp_path / "mine", *(cell(seed=k, damage=0.3) for k in range(3)))
    (match,) = matched(base, candidate)
    assert [(one.cell.method, other.cell.seed) for one, other in match.draws()] == [
        ("rtn", k) for k in range(3)
    ]
    verdict = compare(base, candidate, tasks=("wikitext",))
    assert words(verdict) == {"perplexity": "better"}
    assert verdict.cells[0].label == "rtn 3b g64 -> gptq 3b g64"
    fixed = side(tmp_path / "fixed", cell("rtn", damage=0.4, source="1" * 12))
    assert compare(base, fixed, tasks=("wikitext",)).cells[0].notes == ()


def test_a_seed_at_its_default_is_a_draw_as_well(tmp_path: Path) -> None:
    """Stochastic rounding calibrates on nothing; `params` has a seed only where it was set."""
    sides = []
    for name, own in (("base", 0), ("mine", 11)):
        drawn = [cell("stochastic", seed=k, source=name[0] * 12) for k in range(2)]
        known = [row.model_copy(update={"parameters": {"seed": own}}) for row in drawn]
        sides.append([side(tmp_path / name / "one", known[0]), side(tmp_path / name, *known)])
    (base, both), (candidate, again) = sides
    assert NO_DRAWS in compare(base, candidate).cells[0].notes
    assert NO_DRAWS not in compare(both, again).cells[0].notes
    (match,) = matched(both, again)
    assert [(one.cell.seed, other.cell.seed) for one, other in match.draws()] == [(0, 0), (1, 1)]
    (single,) = matched(base, candidate)
    assert "1 draws are in common" in " ".join(single.lacking(2))


def test_many_comparisons_of_noise_do_not_alarm(tmp_path: Path) -> None:
    """Cells against themselves with another noise: none is worse, by Holm over all of them."""
    for name in ("base", "candidate"):
        side(tmp_path / name, *(cell(bits=b, source=name[0] * 12) for b in (2, 3, 4)))
    both = [
        Side(n, tmp_path / n, tuple(Store(tmp_path / n).read_records()[0]))
        for n in ("base", "candidate")
    ]
    assert compare(*both, tasks=("wikitext", "gsm8k", "divergence")).outcome == "pass"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"revision": "other"}, "revision: main against other"),
        ({"dtype": "bfloat16"}, "dtype: float32 against bfloat16"),
        ({"batch_size": 4}, "batch size: all against 4"),
        ({"evaluation": "new"}, "code that judges:  against new"),
        (
            {"calibration": CALIBRATION.model_copy(update={"samples": 16})},
            "calibration samples: 8 against 16",
        ),
        (
            {"tasks": tuple(task.model_copy(update={"limit": 50}) for task in TASKS)},
            "wikitext limit: 100 against 50",
        ),
        (
            {"seed": 7},
            "seed: 0 against 7, none in common; run one side with the --seed of the "
            "other, or both with --replicates 4",
        ),
    ],
)
def test_what_differs_is_named_and_is_no_regression(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    base = side(tmp_path / "base", cell())
    candidate = side(tmp_path / "candidate", cell(damage=0.9, **change))
    verdict = compare(base, candidate)
    assert verdict.outcome == "not comparable"
    assert reason in verdict.cells[0].reasons


def of_command(judging: Judging, tasks: tuple[TaskSpec, ...], **facts: object) -> Record:
    """A record of a command that asks these tasks, and hashes them all."""
    made = cell(tasks=tasks, evaluation=digest(judging.model_dump()), **facts)
    names = [spec.name for spec in tasks]
    scores = tuple(score for score in made.scores if score.task in names)
    return made.model_copy(update={"judging": judging, "scores": scores})


def test_a_task_is_compared_whatever_else_the_commands_asked(tmp_path: Path) -> None:
    code = {"wikitext": "1" * 12, "divergence": "2" * 12}
    one = Judging(code="a" * 12, tasks={"wikitext": "1" * 12})
    both = Judging(code="a" * 12, tasks=code)
    sides = []
    for name, judging, tasks in (("base", one, TASKS[:1]), ("candidate", both, TASKS[:2])):
        plain = of_command(judging, tasks, method="none", bits=None, damage=0.0)
        sides.append(side(tmp_path / name, plain, of_command(judging, tasks)))
    verdict = compare(*sides, tasks=("wikitext",))
    assert [entry.status for entry in verdict.cells] == ["compared"]
    whole = compare(*sides)
    assert whole.cells[0].reasons == ("divergence: the base has no kl_mean",)


def test_another_code_or_another_task_of_the_name_is_named(tmp_path: Path) -> None:
    code = {"wikitext": "1" * 12, "divergence": "2" * 12}
    base = of_command(Judging(code="a" * 12, tasks=code), TASKS[:2])
    edited = of_command(
        Judging(code="a" * 12, tasks=code | {"divergence": "3" * 12}), TASKS[:2], source="1" * 12
    )
    told = ["what divergence declares: 222222222222 against 333333333333"]
    assert differences(base, edited) == told
    assert differences(base, edited, tasks=("wikitext",)) == []
    assert differences(base, edited, ("evaluation",)) == []
    other = of_command(Judging(code="b" * 12, tasks=code), TASKS[:2])
    assert differences(base, other) == ["code that judges: aaaaaaaaaaaa against bbbbbbbbbbbb"]
    older = base.model_copy(update={"judging": None})
    assert differences(older, base) == [] and len(differences(older, edited)) == 1


def test_what_is_allowed_to_differ_may(tmp_path: Path) -> None:
    base, candidate = cell(), cell(dtype="bfloat16", batch_size=4)
    assert len(differences(base, candidate)) == 2
    assert differences(base, candidate, ("dtype", "batch_size")) == []


def test_items_are_counted_and_compared(tmp_path: Path) -> None:
    """200 against 294 items: what read as a loss of 43 % elsewhere."""
    base = side(tmp_path / "base", cell())
    candidate = side(tmp_path / "candidate", cell(source="1" * 12))
    path = tmp_path / "candidate" / candidate.records[0].scores[0].samples
    score = candidate.records[0].scores[0]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"doc_hash": "x"}) + "\n" for row in rows))
    verdict = compare(base, candidate)
    assert "wikitext: 100 of 100 items are others" in verdict.cells[0].reasons
    few = score.model_copy(update={"n": 60})
    record = candidate.records[0].model_copy(
        update={"scores": (few, *candidate.records[0].scores[1:])}
    )
    verdict = compare(base, Side("few", candidate.folder, (record,)))
    assert "wikitext: 100 against 60 items" in verdict.cells[0].reasons


def test_a_crash_and_a_missing_cell_are_no_regression(tmp_path: Path) -> None:
    base = side(tmp_path / "base", cell(), cell(bits=4))
    crashed = cell(damage=0.2, status="failed", reason="out of memory")
    verdict = compare(base, side(tmp_path / "candidate", crashed))
    assert [one.status for one in verdict.cells] == ["failed", "missing"]
    assert verdict.outcome == "not comparable"
    assert "out of memory" in verdict.cells[0].reasons[0]


def test_an_engine_that_scores_the_unquantized_model_otherwise_is_named(tmp_path: Path) -> None:
    base = side(tmp_path / "base", cell("none", None, damage=0.0), cell())
    candidate = side(
        tmp_path / "candidate", cell("none", None, damage=0.01), cell(damage=0.4, source="1" * 12)
    )
    verdict = compare(base, candidate, tasks=("wikitext",))
    assert verdict.outcome == "not comparable"
    assert "of tiny: the unquantized model itself differs by +0.01" in verdict.cells[0].reasons[0]


def engine(base: Side, candidate: Side, *allowed: str) -> list[str]:
    """The reasons of perplexity."""
    readers = Pairs(base.records, base.folder), Pairs(candidate.records, candidate.folder)
    return engine_reasons(base, candidate, readers, MARGINS, ("wikitext",), allowed)


def test_an_engine_is_named_once_and_blamed_for_the_task_alone(tmp_path: Path) -> None:
    """The unquantized model was asked by two commands; only its divergence is declared anew."""

    def unquantized(code: str, damage: float, *names: str) -> Record:
        judging = Judging(code="a" * 12, tasks={"wikitext": "b" * 12, "divergence": code * 12})
        specs = tuple(spec for spec in TASKS if spec.name in names)
        return of_command(judging, specs, method="none", bits=None, damage=damage)

    names = (("wikitext",), ("wikitext", "divergence"))
    base = side(tmp_path / "base", *(unquantized("b", 0.0, *asked) for asked in names))
    other = side(tmp_path / "other", *(unquantized("c", 0.1, *asked) for asked in names))
    (reason,) = engine(base, other)
    assert "differs by +0.1" in reason and "declares" not in reason


def test_an_engine_whose_packages_are_allowed_to_differ_is_still_looked_at(tmp_path: Path) -> None:
    base = side(tmp_path / "base", cell("none", None, damage=0.0), cell())
    packages = {"packages": {"torch": "2.12.0", "lm_eval": "0.4.13"}}
    cells = (cell("none", None, damage=0.1), cell(damage=0.1))
    moved = [row.model_copy(update={"environment": packages}) for row in cells]
    candidate = side(tmp_path / "candidate", *moved)
    (reason,) = engine(base, candidate, "packages")
    assert "the unquantized model itself differs by +0.1" in reason
    assert "torch: 2.11.0 against 2.12.0" in reason
    assert engine(base, candidate) == [], "cells of other packages are refused by themselves"
    verdict = compare(base, candidate, tasks=("wikitext",), allowed=("packages",))
    assert reason in verdict.cells[0].reasons


def test_what_is_allowed_to_differ_does_not_cross_what_has_its_like(tmp_path: Path) -> None:
    """float32 and bfloat16 on both sides, whose scores differ more than those of engines."""
    made = {"float32": 0.0, "bfloat16": 0.1}
    cells = [cell("none", None, damage=loss, dtype=dtype) for dtype, loss in made.items()]
    sides = [side(tmp_path / name, *cells) for name in ("base", "candidate")]
    assert engine(*sides, "dtype") == []
    first, second = (side(tmp_path / one.cell.dtype, one) for one in cells)
    assert engine(sides[0], second, "dtype") == []
    assert len(engine(first, second, "dtype")) == 1


def test_a_score_at_its_bound_and_no_change_at_all_are_not_certain(tmp_path: Path) -> None:
    """A score equal to a bound is no failure, and 100 answers that did not change prove little."""
    base = side(tmp_path / "base", cell())
    verdict = compare(base, base, tasks=("arc_easy",))
    (finding,) = verdict.cells[0].findings
    assert finding.harm.value == 0 and finding.word == "undecided"
    assert finding.harm.high == pytest.approx(0.037, abs=0.001)


def test_a_small_ratio_or_difference_is_not_written_as_none(tmp_path: Path) -> None:
    base = side(tmp_path / "base", cell(damage=9.5))
    candidate = side(tmp_path / "candidate", cell(damage=0.0, source="1" * 12))
    (finding,) = compare(base, candidate, tasks=("wikitext",)).cells[0].findings
    assert harm_text(finding).startswith(f"{TIMES}7.49e-05 [7.")
    candidate = side(tmp_path / "near", cell(damage=9.5003, source="1" * 12))
    (finding,) = compare(base, candidate, tasks=("gsm8k",)).cells[0].findings
    assert harm_text(finding).startswith("+0.0003 [")


def test_changed_answers_are_listed(tmp_path: Path) -> None:
    base = side(tmp_path / "base", cell(damage=0.0))
    candidate = side(tmp_path / "candidate", cell(damage=2.0, source="1" * 12))
    verdict = compare(base, candidate, tasks=("arc_easy",))
    (finding,) = verdict.cells[0].findings
    assert finding.flips.lost - finding.flips.gained == 20
    assert finding.word == "worse" and len(finding.changes) == 10
    assert "became wrong" in markdown(verdict)
    assert answer({"loglikelihoods": [-3.0, -1.0, -2.0]}) == 1
    assert answer({"filtered": ["42"]}) == "42"


def test_cells_are_chosen_by_label(tmp_path: Path) -> None:
    whole = side(tmp_path / "run", cell(), cell(bits=4), cell("rtn"), cell("none", None))
    assert len(chosen(whole, "gptq").quantized) == 2
    assert [one.cell.label for one in chosen(whole, "gptq 4b").quantized] == ["gptq 4b g64"]
    with pytest.raises(ConfigError, match=r"no cell 'gpt'; it has .*gptq 3b g64"):
        chosen(whole, "gpt")


# ---- the command


def test_the_command_ends_with_the_verdicts_code(tmp_path: Path) -> None:
    side(tmp_path / "base", cell(damage=0.2))
    side(tmp_path / "worse", cell(damage=0.4, source="1" * 12))
    run = ("compare", tmp_path / "base", tmp_path / "worse", "--tasks", "wikitext,divergence")
    done = run_command(*run, "--markdown", tmp_path / "comment.md")
    assert done.code == 1 and "worse: At least one endpoint" in done.out
    assert "gptq 3b g64" in done.out and "seconds to quantize" in done.out
    assert (tmp_path / "comment.md").read_text().startswith("## worse:")
    found = json.loads(run_command(*run, "--json").out)
    assert found["outcome"] == "worse" and len(found["cells"][0]["findings"]) == 2
    same = ("compare", tmp_path / "base", f"{tmp_path / 'base'}:gptq")
    assert run_command(*same, "--tasks", "wikitext").code == 0
    assert run_command(*same).code == 0  # undecided: the answers are few
    assert run_command(*same, "--strict").code == 1
    nothing = run_command(*same, "--tasks", "mmlu")
    assert nothing.code == 2 and "no score has a margin" in nothing.out


def test_of_several_models_every_row_says_which_it_is_of(tmp_path: Path) -> None:
    cells = [cell(), cell("rtn"), cell("rtn", model="other")]
    side(tmp_path / "base", *cells)
    saved = ("baseline", "save", tmp_path / "base", "main", "--baselines", tmp_path / "kept")
    assert run_command(*saved).code == 0
    listed = run_command("baseline", "list", "--baselines", tmp_path / "kept").out
    assert sorted(listed.strip().removeprefix("main  ").split(", ")) == [
        "other rtn 3b g64",
        "tiny gptq 3b g64",
        "tiny rtn 3b g64",
    ]
    side(tmp_path / "candidate", *cells[:-1])
    comment = tmp_path / "comment.md"
    run = ("compare", tmp_path / "base", tmp_path / "candidate", "--markdown", comment)
    done = run_command(*run)
    for line in (*done.out.splitlines(), *comment.read_text().splitlines()):
        if "rtn 3b g64" in line:
            assert "tiny rtn 3b g64" in line or "other rtn 3b g64" in line, line
    assert "tiny rtn 3b g64" in done.out.splitlines()
    assert "missing  other rtn 3b g64" in done.out
    assert f"note     tiny: {NO_DRAWS}" in done.out and f"- tiny: {NO_DRAWS}" in comment.read_text()
    alone = run_command(*run[:1], f"{tmp_path / 'candidate'}:gptq", *run[2:]).out
    assert "gptq 3b g64" in alone.splitlines(), "one model needs no name"


def test_the_command_takes_a_look_of_several(tmp_path: Path) -> None:
    side(tmp_path / "base", *(cell(seed=k) for k in range(3)))
    others = [cell(seed=k, damage=0.25 + 0.015 * k, source="1" * 12) for k in range(3)]
    side(tmp_path / "candidate", *others)
    run = ("compare", tmp_path / "base", tmp_path / "candidate", "--tasks", "wikitext")
    assert json.loads(run_command(*run, "--json").out)["outcome"] == "worse"
    done = run_command(*run, "--json", "--look", "3/4")
    found = json.loads(done.out)
    assert (found["outcome"], done.code) == ("undecided", 0)
    taken = [(look["draws"], look["outcome"]) for look in found["looks"]]
    assert taken == [(2, "undecided"), (3, "undecided")] and found["draws"] == 4
    assert found["level"] == pytest.approx(looks(4)[1].level)
    due = "undecided after 3 of 4 draws: further draws are due"
    assert found["stopped"] == due
    comment = tmp_path / "comment.md"
    done = run_command(*run, "--look", "3/4", "--markdown", comment)
    assert f"looks    {due}" in done.out and f"- {due}" in comment.read_text()
    assert "the verdict is in" not in done.out + comment.read_text()


def test_earlier_looks_are_taken_and_not_made_up(tmp_path: Path) -> None:
    side(tmp_path / "base", *(cell(seed=k) for k in range(4)))
    side(tmp_path / "worse", *(cell(seed=k, damage=3.0, source="1" * 12) for k in range(4)))
    run = ("compare", tmp_path / "base", tmp_path / "worse", "--tasks", "wikitext", "--json")
    found = json.loads(run_command(*run, "--look", "4/4").out)
    taken = [(look["draws"], look["outcome"]) for look in found["looks"]]
    assert taken == [(2, "worse"), (3, "worse"), (4, "worse")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("BASE", "BASE", "--look", "half"), "--look 'half' is not such as 2/4"),
        (("BASE", "BASE", "--look", "1/0"), "--look '1/0' is not such as 2/4"),
        (("BASE", "BASE", "--look", "-1/-1"), "--look '-1/-1' is not such as 2/4"),
        (("BASE", "BASE", "--look", f"2/{'9' * 400}"), "is not such as 2/4"),
        (
            ("BASE", "BASE", "--margin", "acc=0.1", "--margin", "acc=0.2"),
            "--margin acc is given twice; keep one of them",
        ),
        (("BASE", "BASE", "--look", "1/4"), "of 4 draws there are looks at 2/4, 3/4, 4/4"),
        (("nothing", "BASE"), "unknown run or baseline 'nothing'"),
        (("BASE", "runs/nowhere"), "runs/nowhere is neither the folder of a run"),
        (("BASE:awq", "BASE"), "has no cell 'awq'; it has gptq 3b g64"),
        (("BASE", "BASE", "--margin", "acc=-1"), "'acc=-1' is not METRIC=NUMBER"),
        (("BASE", "BASE", "--margin", "ack=1"), "Did you mean 'acc'?"),
        (("BASE", "BASE", "--allow", "torch"), "unknown name in --allow 'torch'"),
    ],
)
def test_misuse_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    side(tmp_path / "base", cell())
    words = [word.replace("BASE", str(tmp_path / "base")) for word in arguments]
    done = run_command("compare", *words)
    assert done.code == 2 and sentence in done.err and "Traceback" not in done.err


def test_the_unquantized_model_is_no_side(tmp_path: Path) -> None:
    side(tmp_path / "run", cell("none", None, damage=0.0), cell())
    run = tmp_path / "run"
    done = run_command("compare", f"{run}:none", f"{run}:none")
    assert done.code == 2 and f"{run}:none is the unquantized model, which is no" in done.err
    assert "give one of gptq 3b g64" in done.err


def test_a_baseline_is_saved_listed_shown_and_compared(tmp_path: Path) -> None:
    side(tmp_path / "run", cell("none", None, damage=0.0), cell(), cell("rtn"))
    place = ("--baselines", tmp_path / "baselines")
    assert run_command("baseline", "save", f"{tmp_path / 'run'}:gptq", "main", *place).code == 0
    assert run_command("baseline", "list", *place).out.split() == ["main", "gptq", "3b", "g64"]
    shown = run_command("baseline", "show", "main", *place).out
    assert "gptq 3b g64" in shown and "rtn" not in shown and "unquantized" not in shown
    done = run_command("compare", "main", f"{tmp_path / 'run'}:gptq", "--tasks", "wikitext", *place)
    assert done.code == 0, done.err + done.out
    kept = tmp_path / "baselines" / "main"
    assert {path.name for path in kept.iterdir()} == {"records", "samples"}
    for name in ("../main", ".main", "a:b", "a b", "-a", "main\n", "main\x1b[31m", "m\u202ea"):
        refused = run_command("baseline", "save", "--", tmp_path / "run", name)
        assert refused.code == 2 and "is not a plain name" in refused.err
    (tmp_path / "file").write_text("")
    refused = run_command("baseline", "list", "--baselines", tmp_path / "file")
    assert refused.code == 2 and "file is no folder; give that of the baselines" in refused.err


def test_of_an_edited_method_the_newest_cell_counts(tmp_path: Path) -> None:
    side(tmp_path / "base", cell(damage=0.2))
    made = side(tmp_path / "mine", cell(damage=0.9, source="1" * 12), cell(source="2" * 12))
    old = tmp_path / "mine" / "records" / f"{made.records[0].id}.json"
    run = ("compare", tmp_path / "base", tmp_path / "mine", "--tasks", "wikitext")
    os.utime(old, ns=(1, 1))
    done = run_command(*run)
    said = " ".join(done.err.split())  # wherever its lines break
    assert done.code == 0 and "1 older cells" in said and "differ in source" in said
    os.utime(old)
    assert run_command(*run).code == 1
    asked = [{"id": made.records[1].id, "model": "m", "label": "mine", "seconds": 1.0}]
    plan = {"started": time.time() + 60, "workers": 1, "cells": asked}
    (tmp_path / "mine" / "plans").mkdir()
    (tmp_path / "mine" / "plans" / "a.json").write_text(json.dumps(plan))
    assert run_command(*run).code == 0, "that of the last command, whatever the times of files"


@pytest.mark.parametrize("field", ["source", "quantization", "recipe", "evaluation", "revision"])
def test_draws_of_another_code_are_none_of_the_newest_cells(tmp_path: Path, field: str) -> None:
    """Of two draws and one of the edited method, only the last counts, whatever its seed."""
    edited = {field: "9" * 12}
    side(tmp_path / "base", *(cell(seed=seed, **edited) for seed in range(2)))
    before = [cell(seed=seed, damage=0.9) for seed in range(2)]
    side(tmp_path / "mine", *before, cell(**edited))
    for record in before:
        os.utime(tmp_path / "mine" / "records" / f"{record.id}.json", ns=(1, 1))
    run = ("compare", tmp_path / "base", tmp_path / "mine", "--tasks", "wikitext", "--json")
    done = run_command(*run)
    (found,) = json.loads(done.out)["cells"]
    assert found["findings"][0]["harm"]["draws"] == 1
    assert found["findings"][0]["harm"]["value"] == pytest.approx(0.0)
    said = " ".join(done.err.split())
    assert "2 older cells" in said and f"differ in {field};" in said


def draw(seed: int, *names: str, code: str = "a", damage: float = 0.2) -> Record:
    """A draw as a command makes it that asks these tasks, judged by that code."""
    judging = Judging(code=code * 12, tasks=dict.fromkeys(names, "b" * 12))
    specs = tuple(spec for spec in TASKS if spec.name in names)
    return of_command(judging, specs, seed=seed, damage=damage)


@pytest.mark.parametrize("more", [("wikitext", "divergence"), ("arc_easy",)])
def test_draws_count_whatever_other_tasks_the_last_command_asked(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    draws = [draw(seed, "wikitext") for seed in range(4)]
    side(tmp_path / "base", *draws)
    side(tmp_path / "mine", *draws, draw(0, *more))
    for record in draws:
        os.utime(tmp_path / "mine" / "records" / f"{record.id}.json", ns=(1, 1))
    done = run_command("compare", tmp_path / "base", tmp_path / "mine", *TEXT, "--json")
    (found,) = json.loads(done.out)["cells"]
    assert found["findings"][0]["harm"]["draws"] == 4, found
    assert done.code == 0 and not done.err


def test_an_older_source_is_not_judged_for_a_newer_one_without_the_task(tmp_path: Path) -> None:
    """A method that was edited, and then asked another task alone."""
    old = draw(0, "wikitext")
    newer = draw(0, "divergence")
    edited = newer.cell.model_copy(update={"source": "2" * 12})
    newer = newer.model_copy(update={"cell": edited, "id": edited.id})
    side(tmp_path / "base", draw(0, "wikitext"))
    side(tmp_path / "mine", old, newer)
    os.utime(tmp_path / "mine" / "records" / f"{old.id}.json", ns=(1, 1))
    done = run_command("compare", tmp_path / "base", tmp_path / "mine", *TEXT)
    assert done.code == 2 and "differ in source" in " ".join(done.err.split())


def test_draws_whose_task_was_judged_by_other_code_do_not_count(tmp_path: Path) -> None:
    draws = [draw(seed, "wikitext", code="c", damage=0.9) for seed in range(4)]
    side(tmp_path / "mine", *draws, draw(0, "wikitext", "divergence"))
    side(tmp_path / "base", *(draw(seed, "wikitext") for seed in range(4)))
    for record in draws:
        os.utime(tmp_path / "mine" / "records" / f"{record.id}.json", ns=(1, 1))
    done = run_command("compare", tmp_path / "base", tmp_path / "mine", *TEXT, "--json")
    (found,) = json.loads(done.out)["cells"]
    assert found["findings"][0]["harm"]["draws"] == 1
    said = " ".join(done.err.split())
    assert "4 older cells" in said and "differ in evaluation;" in said


def test_draws_that_were_judged_by_different_code_are_not_averaged(tmp_path: Path) -> None:
    """Also where each draw was judged alike on both sides."""
    draws = [draw(seed, "wikitext", code=code) for seed, code in enumerate("ac")]
    whole = side(tmp_path / "run", *draws)
    (entry,) = compare(whole, whole, tasks=("wikitext",)).cells
    assert entry.status == "not comparable"
    assert entry.reasons == (
        "draws of one side: code that judges: aaaaaaaaaaaa against cccccccccccc",
    )
    (entry,) = compare(whole, whole, tasks=("wikitext",), allowed=("evaluation",)).cells
    assert entry.status == "compared"


def test_an_older_cell_is_chosen_by_its_id(tmp_path: Path) -> None:
    """As the warning about older cells promises."""
    made = side(tmp_path / "mine", cell(damage=0.9, source="1" * 12), cell(source="2" * 12))
    old = made.records[0].id
    os.utime(tmp_path / "mine" / "records" / f"{old}.json", ns=(1, 1))
    done = run_command("compare", tmp_path / "mine", f"{tmp_path / 'mine'}:{old}", *TEXT)
    assert done.code == 1 and "1 older cells" in done.err, "of the side without an id alone"
    assert done.err.count("older cells") == 1


def test_a_record_is_compared_by_its_file(tmp_path: Path) -> None:
    made = side(tmp_path / "run", cell(), cell(bits=4))
    path = tmp_path / "run" / "records" / f"{made.records[0].id}.json"
    done = run_command("compare", path, path, "--tasks", "wikitext")
    assert done.code == 0 and "4b" not in done.out


def test_changed_answers_are_quoted_where_the_data_are_those(tmp_path: Path) -> None:
    source = open_source("mini")
    specs = [
        TaskSpec(name="mini-arc_easy", data="d", sha256=source.sha256("arc_easy")),
        TaskSpec(name="mini-mmlu", data="d", sha256=source.sha256("mmlu")),
    ]
    first = source.rows("arc_easy", "test")[3]["question"]
    assert questions(specs[0], None)["3"][:30] == " ".join(first.split())[:30]
    subject = source.rows("mmlu", "test")[0]["subject"]
    assert questions(specs[1], "mini")[f"{subject} 0"]
    assert questions(specs[0].model_copy(update={"sha256": "other"}), None) == {}
