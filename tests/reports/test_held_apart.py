"""What tells cells apart, and what must be alike before one is held against another."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from qbench.comparison.costs import costs, elsewhere
from qbench.comparison.pairs import Pairs
from qbench.comparison.ranks import MADE_BY, outdone, ranks, winners
from qbench.experiment.store import Store
from qbench.records import Caution, Cell, Latency, Record
from qbench.reports import latencies
from qbench.reports.axes import panel
from qbench.reports.cell_names import names, ordered, shared_parameters
from qbench.reports.headline import headlines
from qbench.reports.long_table import long_table
from qbench.reports.looks import looks
from qbench.reports.pictures import file_name, offered
from qbench.reports.plots import first_figure
from qbench.reports.ranking import ranking
from qbench.reports.tables import grid, markdown
from qbench.reports.terminal import screen
from synthetic_records import TIMED, record, scores, stored

PERPLEXITY = ("mini-text", "perplexity", "none")


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


def test_draws_are_ranked_by_their_like_and_won_over_all(tmp_path: Path) -> None:
    """A draw of one is better than that of the same seed, and no winner over a lucky one."""
    others = drawn("gptq", (0.2, 0.5, 0.1), source="1" * 12)
    records = stored([*drawn("gptq", (0.3, 0.3, 0.3)), *others], tmp_path)
    pairs = Pairs(records, tmp_path)
    places = ranks(records, PERPLEXITY, pairs)
    assert [places[one.id] for one in records] == [2, 1, 2, 1, 2, 1]
    assert winners(records, PERPLEXITY, pairs) == {records[3].id, records[5].id}


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
