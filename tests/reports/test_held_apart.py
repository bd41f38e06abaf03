"""What tells cells apart, and what must be alike before one is held against another."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from qbench.comparison.costs import costs, elsewhere
from qbench.comparison.pairs import Pairs
from qbench.comparison.ranks import MADE_BY, outdone, ranks, winners
from qbench.experiment.store import Store
from qbench.records import Caution, Cell, Judging, Latency, Record, digest
from qbench.reports import latencies, pictures, plots
from qbench.reports.axes import panel
from qbench.reports.cell_names import names, ordered, shared_parameters
from qbench.reports.headline import headlines
from qbench.reports.long_table import long_table
from qbench.reports.looks import looks
from qbench.reports.page import html
from qbench.reports.pictures import file_name, offered
from qbench.reports.plots import first_figure
from qbench.reports.ranking import ranking
from qbench.reports.repeats import without_repeats
from qbench.reports.tables import grid, markdown
from qbench.reports.terminal import screen
from synthetic_records import TASKS, TIMED, record, scores, stored

PERPLEXITY = ("mini-text", "perplexity", "none")
KL = ("mini-divergence", "kl_mean", "none")


def changed(base: Record, **fields: object) -> Record:
    """The record of a cell with other fields, under the id of that cell."""
    cell = base.cell.model_copy(update=fields)
    return base.model_copy(update={"cell": cell, "id": cell.id})


def judged_with(base: Record, **versions: str) -> Record:
    """As if other packages had judged it, in another run of another seed."""
    environment = base.environment | {"packages": versions}
    return changed(base, seed=1).model_copy(update={"environment": environment})


def test_cells_of_other_packages_are_not_held_against_each_other(tmp_path: Path) -> None:
    mine = [record("none", None), record("greedy", 3, 0.1), record("alternating", 3, 0.9)]
    other = judged_with(record("greedy", 3, 0.2), torch="2.1.0")
    records = stored([*mine, other], tmp_path)
    pairs = Pairs(records, tmp_path)
    assert pairs.from_unquantized(records[1], PERPLEXITY) is not None
    assert pairs.from_unquantized(records[3], PERPLEXITY) is None
    assert ranks(records, PERPLEXITY, pairs)[records[3].id] == 1
    assert winners(records, PERPLEXITY, pairs) == {records[1].id}
    called = names(records)
    assert "torch=2.1.0" in called[records[3].id] and "torch=2.11.0" in called[records[2].id]


def of_command(base: Record, *tasks: str, **declared: str) -> Record:
    """The record as a command that asks these tasks alone makes it."""
    specs = tuple(spec for spec in TASKS if spec.name in tasks)
    judging = Judging(code="a" * 12, tasks={**dict.fromkeys(tasks, "b" * 12), **declared})
    asked = changed(base, tasks=specs, evaluation=digest(judging.model_dump()))
    scores = tuple(score for score in base.scores if score.task in tasks)
    return asked.model_copy(update={"scores": scores, "judging": judging})


def test_cells_are_judged_alike_in_a_task_whatever_else_was_asked(tmp_path: Path) -> None:
    text, both = ("mini-text",), ("mini-text", "mini-divergence")
    made = [of_command(record("none", None), *tasks) for tasks in (text, both)]
    made += [of_command(record("rtn", 3, 0.6), *text), of_command(record("gptq", 3, 0.2), *both)]
    records = stored(made, tmp_path)
    pairs = Pairs(records, tmp_path)
    assert len({one.cell.evaluation for one in records}) == 2
    assert {*names(without_repeats(records)).values()} == {"unquantized", "rtn", "gptq"}
    assert ranks(records, PERPLEXITY, pairs) == {records[2].id: 2, records[3].id: 1}
    assert winners(records, PERPLEXITY, pairs) == {records[3].id}
    assert outdone(records, PERPLEXITY) == set()
    alone = Pairs([records[0]], tmp_path)
    assert alone.from_unquantized(records[3], PERPLEXITY) is not None
    table = long_table(records, tmp_path)
    assert set(table[table.task == "mini-text"].evaluation) == {f"{'a' * 12}:{'b' * 12}"}


def test_a_cell_that_was_asked_again_with_more_tasks_is_one_row(tmp_path: Path) -> None:
    text, both = ("mini-text",), ("mini-text", "mini-divergence")
    mine = [record("none", None), record("rtn", 3, 0.6)]
    records = stored([of_command(one, *tasks) for tasks in (text, both) for one in mine], tmp_path)
    records[1] = records[1].model_copy(update={"latency": TIMED})
    kept = [records[1].id, records[2].id, records[3].id]
    assert [one.id for one in without_repeats(records)] == kept, "which alone has its time"
    records = [records[0], *records[2:]]
    assert [one.id for one in without_repeats(records)] == kept[1:]
    assert markdown(records, tmp_path).count("| unquantized") == 1
    page = html(records, tmp_path)
    assert [f"cells/{one.id}.html" in page for one in records] == [False, True, True]
    edited = of_command(mine[1], *text, **{"mini-text": "c" * 12})
    assert edited in without_repeats([*records, edited]), "another question of the same name"


def test_rows_of_one_model_that_was_asked_other_tasks_tell_them() -> None:
    others = ("mini-divergence", "mini-arc_easy")
    twice = [of_command(record("rtn", 3, 0.6), "mini-text", other) for other in others]
    records = [*twice, of_command(record("rtn", 4, 0.2), "mini-text")]
    called = names(without_repeats(records))
    expected = [f"rtn tasks=mini-text,{other}" for other in others]
    assert list(called.values()) == [*expected, "rtn"]


@pytest.mark.parametrize("module", [plots, pictures])
def test_a_picture_has_one_point_for_a_cell_that_was_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    drawn = []

    def figure(records: Sequence[Record], *_: object) -> Figure:
        drawn.append([one.id for one in records])
        return Figure()

    monkeypatch.setattr(plots, "first_figure", figure)
    monkeypatch.setattr(pictures, "headline_figure", figure)
    text, both = ("mini-text",), ("mini-text", "mini-divergence")
    records = [of_command(record("rtn", 3, 0.6), *tasks) for tasks in (text, both)]
    module.write(records, tmp_path)
    assert drawn and all(ids == [records[1].id] for ids in drawn)


def test_cells_of_an_edited_task_are_held_apart_in_this_task_alone(tmp_path: Path) -> None:
    both = ("mini-text", "mini-divergence")
    mine = of_command(record("rtn", 3, 0.6), *both)
    edited = of_command(record("gptq", 3, 0.2), *both, **{"mini-divergence": "c" * 12})
    records = stored([mine, edited], tmp_path)
    pairs = Pairs(records, tmp_path)
    assert ranks(records, PERPLEXITY, pairs) == {mine.id: 2, edited.id: 1}
    assert ranks(records, KL, pairs) == {mine.id: 1, edited.id: 1}
    assert outdone(records, KL) == {mine.id}
    assert names(records)[edited.id] == f"gptq evaluation=mini-divergence:{'c' * 12}"


def test_nothing_is_bold_or_first_over_a_better_cell_that_was_judged_otherwise(
    tmp_path: Path,
) -> None:
    """By its mean, as it cannot be paired; the same cell judged again is no rival."""
    made = [record("rtn", 3, 0.6), record("gptq", 3, 0.5)]
    for damage in (0.2, 0.3):
        source = str(damage)[-1] * 12
        made.append(changed(record("gptq", 3, damage), source=source, evaluation="1" * 12))
    records = stored(made, tmp_path)
    assert outdone(records, PERPLEXITY) == {records[0].id, records[1].id}
    assert winners(records, PERPLEXITY, Pairs(records, tmp_path)) == {records[2].id}
    _, rows = ranking(records, tmp_path)
    assert [row.entries[0].text for row in rows] == ["1", "2", "≥1", "≥2"]
    again = changed(record("gptq", 3, 0.1), evaluation="1" * 12)
    records = stored([*made[:2], again], tmp_path)
    assert outdone(records, PERPLEXITY) == {records[0].id}
    assert winners(records, PERPLEXITY, Pairs(records, tmp_path)) == {records[1].id}


def test_a_cell_without_items_has_no_place_and_takes_none_from_others(tmp_path: Path) -> None:
    made = [record("greedy", 3, 0.1), record("alternating", 3, 0.5), record("greedy", 3, 0.9)]
    made[2] = changed(made[2], source="1" * 12)
    records = stored(made, tmp_path)
    (tmp_path / records[2].scores[0].samples).unlink()
    pairs = Pairs(records, tmp_path)
    assert ranks(records, PERPLEXITY, pairs) == {records[0].id: 1, records[1].id: 2}
    assert winners(records, PERPLEXITY, pairs) == {records[0].id}
    (tmp_path / records[1].scores[0].samples).unlink()
    pairs = Pairs(records, tmp_path)
    assert ranks(records, PERPLEXITY, pairs) == {records[0].id: 1}
    assert winners(records, PERPLEXITY, pairs) == set(), "nobody is left to be better than"
    assert ranks(records, PERPLEXITY, Pairs(records, None)) == {}


def test_a_better_mean_without_items_leaves_no_winner(tmp_path: Path) -> None:
    made = [record("greedy", 3, 0.2), record("alternating", 3, 0.5), record("greedy", 3, 0.1)]
    made[2] = changed(made[2], source="1" * 12)
    records = stored(made, tmp_path)
    (tmp_path / records[2].scores[0].samples).unlink()
    assert winners(records, PERPLEXITY, Pairs(records, tmp_path)) == set()


def test_cells_of_other_items_have_no_place(tmp_path: Path) -> None:
    records = stored([record("greedy", 3, 0.1), record("alternating", 3, 0.5)], tmp_path)
    path = tmp_path / records[1].scores[0].samples
    path.write_text(path.read_text().replace('"doc_hash": "mini', '"doc_hash": "other'))
    pairs = Pairs(records, tmp_path)
    assert ranks(records, PERPLEXITY, pairs) == {}
    assert winners(records, PERPLEXITY, pairs) == set()


def drawn(method: str, damages: Sequence[float], **fields: object) -> list[Record]:
    """A draw with each of the damages, by seed."""
    made = [record(method, 3, damage) for damage in damages]
    return [changed(draw, seed=seed, **fields) for seed, draw in enumerate(made)]


def test_draws_of_a_method_are_one_rival(tmp_path: Path) -> None:
    records = stored([*drawn("gptq", (0.1, 0.15, 0.2, 0.12)), record("rtn", 3, 0.9)], tmp_path)
    pairs = Pairs(records, tmp_path)
    places = ranks(records, PERPLEXITY, pairs)
    assert [places[one.id] for one in records] == [1, 1, 1, 1, 2]
    assert winners(records, PERPLEXITY, pairs) == {one.id for one in records[:4]}


def test_a_lucky_draw_is_not_bold_over_its_siblings(tmp_path: Path) -> None:
    records = stored(drawn("gptq", (0.1, 0.5, 0.6)), tmp_path)
    pairs = Pairs(records, tmp_path)
    assert winners(records, PERPLEXITY, pairs) == set()
    assert set(ranks(records, PERPLEXITY, pairs).values()) == {1}


def held(ours: Sequence[float], theirs: Sequence[float], folder: Path) -> tuple[list[int], str]:
    """Places of all draws of two methods, and which of them is bold: `110` for the first two."""
    others = drawn("gptq", theirs, source="1" * 12)
    records = stored([*drawn("gptq", ours), *others], folder)
    pairs = Pairs(records, folder)
    places, best = ranks(records, PERPLEXITY, pairs), winners(records, PERPLEXITY, pairs)
    return [places[one.id] for one in records], "".join(str(int(r.id in best)) for r in records)


def test_draws_are_held_against_each_other_all_together(tmp_path: Path) -> None:
    """Each draw differs from that of the same seed beyond chance, and the methods do not."""
    even = (0.3, 0.3, 0.3, 0.3)
    assert held(even, (0.2, 0.5, 0.1, 0.35), tmp_path) == ([1] * 8, "0" * 8)
    assert held(even, (0.2, 0.21, 0.19, 0.2), tmp_path) == ([2] * 4 + [1] * 4, "00001111")


def test_all_draws_of_a_method_have_one_verdict(tmp_path: Path) -> None:
    """The worst draw of the better one is behind the best draw of the other."""
    ours, theirs = (0.30, 0.50, 0.40, 0.45), (0.13, 0.32, 0.23, 0.28)
    assert held(ours, theirs, tmp_path) == ([2] * 4 + [1] * 4, "00001111")


def test_a_single_draw_is_held_against_the_one_of_its_seed(tmp_path: Path) -> None:
    assert held((0.3,), (0.2, 0.5, 0.1), tmp_path) == ([2, 1, 2, 1], "0101")


def test_a_method_that_draws_nothing_is_held_against_all_draws(tmp_path: Path) -> None:
    """Its one cell has the seed of a draw that is better, and the method is not."""
    records = stored([*drawn("gptq", (0.1, 0.5, 0.2, 0.4)), record("rtn", 3, 0.3)], tmp_path)
    pairs = Pairs(records, tmp_path)
    assert set(ranks(records, PERPLEXITY, pairs).values()) == {1}
    assert winners(records, PERPLEXITY, pairs) == set()


def test_a_draw_without_items_is_none_of_the_shared_ones(tmp_path: Path) -> None:
    others = drawn("gptq", (0.2, 0.21, 0.4), source="1" * 12)
    records = stored([*drawn("gptq", (0.3, 0.3, 0.3)), *others], tmp_path)
    (tmp_path / records[5].scores[0].samples).unlink()
    pairs = Pairs(records, tmp_path)
    assert [*ranks(records, PERPLEXITY, pairs).values()] == [2, 2, 2, 1, 1]
    assert pairs.over([(records[0], records[5]), (records[1], records[4])], PERPLEXITY) is None
    assert winners(records, PERPLEXITY, pairs) == {records[3].id, records[4].id}


def test_what_makes_a_model_tells_draws_from_other_cells() -> None:
    """A new field of a cell belongs to what is made, or to how it is judged."""
    told = {"model", "scheme", "method", "params", "seed", *MADE_BY}
    judged = {"tasks", "evaluation", "batch_size", "dtype", "device"}
    assert told | judged == set(Cell.model_fields) and not told & judged


def test_a_picture_has_a_frontier_for_each_way_of_judging_and_every_unquantized_line() -> None:
    records = []
    for revision, better in (("v1", 0.0), ("v2", 0.05)):
        records.append(changed(record("none", None, better), revision=revision))
        for bits, damage in ((2, 0.5), (3, 0.2), (4, 0.1)):
            records.append(changed(record("greedy", bits, damage + better), revision=revision))
    figure = first_figure(records, "tiny")
    axes = figure.axes[0]
    frontiers = [line for line in axes.lines if line.get_gid() == "pareto"]
    assert [len(line.get_xdata()) for line in frontiers] == [3, 3]
    dashed = [line.get_label() for line in axes.lines if "unquantized" in str(line.get_label())]
    assert sorted(dashed) == ["unquantized revision=v1", "unquantized revision=v2"]
    notes: list[str] = []
    headline = headlines(records)[0]
    panel(axes, records, headline, looks(records), notes, Pairs(records, None))
    assert any("several revisions" in note for note in notes)


def test_calibration_texts_of_one_name_are_told_apart() -> None:
    base = record("gptq", 3, 0.1)
    assert base.cell.calibration is not None
    text = base.cell.calibration.model_copy(update={"sha256": "f" * 64})
    called = names([base, changed(base, calibration=text)])
    assert list(called.values()) == ["gptq text=cccccccc", "gptq text=ffffffff"]


def sampled(bits: int, samples: int, seed: int = 0, **fields: object) -> Record:
    """A record of GPTQ that was calibrated with so many windows."""
    base = record("gptq", bits, **fields)
    assert base.cell.calibration is not None
    sample = base.cell.calibration.model_copy(update={"samples": samples})
    return changed(base, calibration=sample, seed=seed)


def test_cells_are_in_order_of_their_calibrations_and_seeds_at_all_bits() -> None:
    expected = [
        sampled(bits, samples, seed)
        for bits in (2, 3, 4)
        for samples in (4, 8, 16)
        for seed in (0, 1)
    ]
    assert [row.id for row in ordered(reversed(expected))] == [row.id for row in expected]


def test_lines_below_the_leaderboard_tell_calibrations_apart() -> None:
    doubted = tuple(score.model_copy(update={"suspicion": "odd"}) for score in scores(0.2, 3))
    lost = {"status": "failed", "scores": (), "reason": "no"}
    warned = {"warnings": (Caution(kind="size", text="too large"),)}
    mine = [
        sampled(3, 4, scores=doubted),
        sampled(3, 8, **warned),
        sampled(3, 16, **lost),
    ]
    stream = io.StringIO()
    screen(mine, Console(width=140, file=stream))
    shown = stream.getvalue()
    assert "doubtful  gptq 3b g64 cal:4x512  " in shown
    assert "warning  tiny gptq 3b g64 cal:8x512  too large" in shown
    assert "failed  gptq 3b g64 cal:16x512  no" in shown
    assert "gptq 3b g64 cal:16x512 (failed): no" in markdown(mine)


def test_shared_parameters_tell_the_model_where_models_differ() -> None:
    base = record("gptq", 3, 0.1)
    cells = [
        changed(base, model=name, params={"damp": damp}) for name, damp in (("a", 1), ("b", 2))
    ]
    text = shared_parameters(cells)
    assert text == "Parameters of all their cells: gptq of a damp=1; gptq of b damp=2."
    alike = [changed(cell, params={"damp": 1}) for cell in cells]
    assert shared_parameters(alike) == "Parameters of all their cells: gptq damp=1."


def test_rows_of_different_cells_differ_without_their_ids() -> None:
    base = record("rtn", 3, 0.3)
    assert base.cell.scheme is not None
    symmetric = replace(base.cell.scheme, symmetric=True)
    cells = [
        base,
        changed(base, scheme=symmetric),
        changed(base, dtype="bfloat16"),
        changed(base, revision="other"),
        changed(base, seed=1),
        changed(base, source="1" * 12),
    ]
    table = long_table(cells)
    first = table[table.metric == "perplexity"].drop(columns=["cell"])
    assert len(first.drop_duplicates()) == len(cells)


def test_pictures_of_models_with_like_paths_are_files_of_their_own() -> None:
    records = [record("none", None, model=name) for name in ("../m", "./m", "m")]
    records += [record("rtn", 3, 0.3, model=name) for name in ("../m", "./m", "m")]
    paths = [file_name(*picture) for picture in offered(records)]
    assert len(set(paths)) == len(paths)
    assert any(path.startswith("m-mini-text") for path in paths), "a plain name stays as it is"


def test_a_model_is_ranked_and_drawn_as_it_was_asked(tmp_path: Path) -> None:
    mine = [record("none", None), record("greedy", 3, 0.1), record("alternating", 3, 0.9)]
    tasks = tuple(task.model_copy(update={"limit": 9}) for task in mine[0].cell.tasks)
    others = [changed(cell, model="zeta", tasks=tasks) for cell in mine]
    records = stored([*mine, *others], tmp_path)
    _, rows = ranking(records, tmp_path)
    assert [row.entries[0].text for row in rows] == ["", "1", "2", "", "1", "2"]
    figure = first_figure(records, "zeta", tmp_path)
    assert all(len(axes.lines) > 1 for axes in figure.axes)


def test_an_older_record_of_a_quantized_model_has_no_divergence_from_itself(
    tmp_path: Path,
) -> None:
    theirs = changed(record("none", None), stored_as="gptq 4b g128")
    theirs = theirs.model_copy(update={"scores": record("rtn", 4, 0.0).scores})
    again = changed(record("rtn", 4, 0.2), stored_as="gptq 4b g128")
    store = Store(tmp_path)
    for made in (theirs, again):
        store.write_record(made)
    read = {one.id: {score.metric for score in one.scores} for one in store.read_records()[0]}
    assert "perplexity" in read[theirs.id]
    assert not {"kl_mean", "top1_agreement"} & read[theirs.id]
    assert {"kl_mean", "top1_agreement"} <= read[again.id]
    assert list(names([theirs, again]).values()) == ["gptq 4b g128", "rtn"]
    assert (theirs.cell.label, again.cell.label) == (
        "gptq 4b g128",
        "rtn 4b g64 clip=search period=4",
    )


# ---- latencies


def test_a_latency_that_ended_half_way_is_not_that_of_all_layers() -> None:
    half = TIMED.products[:1]
    for cut in (
        Latency(**dict(TIMED) | {"products": half, "decoding": None, "reason": "killed"}),
        Latency(**dict(TIMED) | {"products": half, "layers": 4, "reason": "killed"}),
    ):
        assert cut.milliseconds(1) is None
    whole = Latency(**dict(TIMED) | {"layers": 2, "decoding": None, "reason": "no memory"})
    assert whole.milliseconds(1) is not None


def test_times_of_other_machines_are_not_compared() -> None:
    here = record("rtn", 3, 0.3, latency=TIMED)
    there = record("greedy", 3, 0.3, latency=TIMED.model_copy(update={"device": "Other"}))
    there = there.model_copy(update={"environment": {"hardware": {"cpu": "Other"}}})
    assert {"bits per weight", "products over dense, batch 1"} <= costs([(here, there)]).keys()
    assert not {"seconds to quantize", "tokens per second"} & costs([(here, there)]).keys()
    assert "seconds to quantize" in elsewhere([(here, there)])[0]
    assert elsewhere([(here, here)]) == []
    assert latencies.places([here, there]) == [
        "Some CPU, 1 thread, float32",
        "Other, 1 thread, float32",
    ]
    columns, rows = grid([here, there])
    place = columns.index("timed on")
    assert {row[place].text for row in rows} == set(latencies.places([here, there]))
    assert "timed on" not in grid([here])[0]
