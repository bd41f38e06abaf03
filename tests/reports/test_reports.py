"""Reports from synthetic records: tables, pictures, and the page."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from fresh_python import run_python
from qbench.commands.folders import _score_line
from qbench.commands.progress import LiveView
from qbench.comparison.pairs import TIMES, Contrast, Pairs
from qbench.comparison.ranks import winners
from qbench.contracts import Scheme
from qbench.errors import ConfigError, DataError, StoreError
from qbench.records import Caution, Record, Score, digest
from qbench.registry import declarations
from qbench.reports import json_lines, pictures, plots
from qbench.reports.cautions import summary
from qbench.reports.cell_names import names, shared_parameters
from qbench.reports.headline import headlines
from qbench.reports.long_table import COLUMNS, long_table
from qbench.reports.long_table import write as write_csv
from qbench.reports.looks import looks
from qbench.reports.noise import noise_lines
from qbench.reports.numbers import number, score_text, student_interval
from qbench.reports.pictures import file_name
from qbench.reports.plots import BITS
from qbench.reports.points import Point, _ends, frontier
from qbench.reports.registry import FOLDERS, write_reports, writers
from qbench.reports.tables import grid, markdown
from qbench.reports.terminal import screen
from qbench.scheme import LayerRule
from qbench.stats.difference import Difference
from qbench.stats.shares import wilson
from quality_figure import quality_figure
from synthetic_records import DAMAGE, REASON, TASKS, TIMED, failed, record, scores, stored
from wide_table import wide_table

EVERYTHING = 10  # six files, and the folders cells, methods and pictures


@pytest.fixture(scope="module")
def records() -> list[Record]:
    found = [record("none", None)]
    for k, bits in enumerate((2, 3, 4)):
        for method, damage in DAMAGE.items():
            lost = (method, bits) == ("greedy", 2)
            found.append(failed(method, bits) if lost else record(method, bits, damage[k]))
    return found


@pytest.fixture(scope="module")
def report(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of a report of all records, in a folder of their own."""
    return write_reports(records, tmp_path_factory.mktemp("report"))


def at(report: list[Path], name: str) -> Path:
    return next(path for path in report if path.name == name)


def lines_of(figure: Figure) -> list[Sequence[float]]:
    (axes,) = figure.axes
    return [list(container.lines[0].get_ydata()) for container in axes.containers]


# ---- tables


def test_long_table_has_the_columns_and_one_row_per_score(records: list[Record]) -> None:
    table = long_table(records)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == sum(len(r.scores) or 1 for r in records)
    assert list(table.method[:6]) == ["none"] * 6
    assert table.bits[6:].is_monotonic_increasing
    lost = table[table.status == "failed"].iloc[0]
    assert (lost.task, lost.metric, lost.reason) == ("", "", REASON)
    assert math.isnan(lost.value)
    assert set(table[table.method == "rtn"].params) == {"clip=search period=4"}


def test_long_table_does_not_depend_on_the_order_of_the_records(records: list[Record]) -> None:
    pd.testing.assert_frame_equal(long_table(records), long_table(records[::-1]))


def test_json_lines_have_every_digit_whole_numbers_and_null(tmp_path: Path) -> None:
    small = record("rtn", 3, 0.3)
    exact = small.scores[1].model_copy(update={"value": 1.2345678901234567e-07})
    cells = [small.model_copy(update={"scores": (exact,)}), failed("greedy", 2)]
    (path,) = json_lines.write(cells, tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [tuple(row) for row in rows] == [COLUMNS, COLUMNS]
    of_score = next(row for row in rows if row["status"] == "ok")
    assert of_score["value"] == exact.value and of_score["stderr"] == exact.stderr
    assert [type(of_score[name]) for name in ("n", "seed", "bits", "shots")] == [
        int,
        int,
        int,
        type(None),
    ]
    lost = next(row for row in rows if row["status"] == "failed")
    assert lost["value"] is None and lost["n"] is None and lost["task"] == ""


def test_a_name_is_no_formula_in_the_csv_and_itself_in_the_json(tmp_path: Path) -> None:
    name = "=HYPERLINK(1) \u202e漢"
    cells = [record("rtn", 3, 0.3, model=name)]
    (path,) = json_lines.write(cells, tmp_path)
    assert {json.loads(line)["model"] for line in path.read_text().splitlines()} == {name}
    (path,) = write_csv(cells, tmp_path)
    assert set(pd.read_csv(path).model) == {"'=HYPERLINK(1) \\u202e漢"}


def test_csv_survives_a_round_trip(records: list[Record], report: list[Path]) -> None:
    types = {
        name: "string"
        for name in ("params", "group_size", "task", "metric", "filter", "reason", "cell")
    }
    back = pd.read_csv(at(report, "leaderboard.csv"), dtype=types)
    assert tuple(back.columns) == COLUMNS
    table = long_table(records)
    assert list(back.value.dropna()) == list(table.value.dropna())
    assert list(back.reason.fillna("")) == list(table.reason)
    assert back.bits[back.method == "none"].isna().all()
    assert (back.group_size[back.method == "rtn"] == "64").all()


def test_wide_table_has_one_row_per_cell_and_the_headline_scores_in_order(
    records: list[Record],
) -> None:
    table = wide_table(records)
    assert len(table) == len(records)
    assert list(table.columns) == [
        *("method", "bits", "group", "format", "bits/weight (measured)"),
        *("mini-text perplexity", "mini-divergence kl_mean in nats per token"),
        *("mini-divergence top1_agreement %",),
        *("mini-arc_easy acc %", "mini-arc_easy gold_logprob in nats"),
        *("mini-gsm8k exact_match % (strict-match)", "mini-gsm8k exact_match % (flexible-extract)"),
        *("mini-gsm8k gold_nll in nats per token", "quantize seconds", "peak memory MB"),
    ]
    assert table.iloc[0]["mini-arc_easy acc %"] == "52.0 ± 2.5"
    assert "greedy (failed)" in set(table.method)


@pytest.mark.parametrize(
    ("value", "stderr", "unit", "text"),
    [
        (0.35, 0.008, "%", "35.0 ± 0.8"),
        (19.844, 0.113, "", "19.84 ± 0.11"),
        (1.13e6, 1.2e4, "", "1.1e6 ± 1e4"),
        (0.0, None, "nats", "0"),
        (4.9e-6, 1.2e-7, "nats", "4.90e-6 ± 1.2e-7"),
        (2.6e-7, None, "nats", "2.600e-7"),
        (3e-5, 1e-21, "nats", "3.00000e-5 ± 1.0e-21"),
        (0.35, 2e-7, "nats", "0.35000 ± 2.0e-7"),
        (19.844, None, "", "19.84"),
        (math.inf, math.nan, "", "inf"),
        (math.nan, None, "", "nan"),
    ],
)
def test_numbers_show_as_many_places_as_their_error_deserves(
    value: float, stderr: float | None, unit: str, text: str
) -> None:
    assert number(value, stderr, unit) == text


def test_a_small_divergence_is_not_written_as_none(tmp_path: Path) -> None:
    """It is ten times the floor of float32, and has an interval that is no point."""
    (mine,) = stored([record("rtn", 3, 0.3)], tmp_path)
    path = tmp_path / mine.scores[1].samples
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for index, row in enumerate(rows):
        if "kl_mean" in row:
            row["kl_mean"] = 4e-6 + 2e-8 * (index % 100)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    mean = sum(row["kl_mean"] for row in rows if "kl_mean" in row) / mine.scores[1].n
    score = mine.scores[1].model_copy(update={"value": mean})
    mine = mine.model_copy(update={"scores": (score,)})
    contrast = Pairs([mine], tmp_path).from_unquantized(
        mine, ("mini-divergence", "kl_mean", "none")
    )
    shown = "4.99e-6 [4.87e-6, 5.11e-6]"
    assert score_text(score, contrast) == shown
    assert contrast.text == "+4.99e-6 [+4.87e-6, +5.11e-6]"


def test_an_agreement_of_all_windows_is_not_certain(tmp_path: Path) -> None:
    whole = record("rtn", 3, 0.3).scores[2].model_copy(update={"value": 1.0, "stderr": 0.0})
    mine = record("rtn", 3, scores=(whole,))
    path = Path("samples") / "windows.jsonl"
    (tmp_path / path).parent.mkdir()
    row = {"filter": "none", "top1_agreement": 1.0}
    lines = [json.dumps(row | {"doc_hash": str(index)}) for index in range(whole.n)]
    (tmp_path / path).write_text("\n".join(lines))
    score = whole.model_copy(update={"samples": str(path)})
    mine = mine.model_copy(update={"scores": (score,)})
    key = ("mini-divergence", "top1_agreement", "none")
    contrast = Pairs([mine], tmp_path).from_unquantized(mine, key)
    assert score_text(score, contrast) == "100.0 [96.3, 100.0]"


def none_right() -> Record:
    """A cell that has answered both of its two items wrong."""
    low, high = wilson(0.0, 2)
    facts = {"value": 0.0, "stderr": None, "n": 2, "higher_is_better": True}
    score = Score(task="mini-arc_easy", metric="acc", low=low, high=high, **facts)
    return record("rtn", 3, scores=(score,))


def test_none_right_of_two_is_an_interval_wherever_scores_are_written(tmp_path: Path) -> None:
    mine = none_right()
    interval = "0.0 [0.0, 65.8]"
    (score,) = mine.scores
    assert score_text(score) == interval
    assert score_text(score.model_copy(update={"low": None, "high": None})) == interval
    stream = io.StringIO()
    with LiveView(Console(file=stream, width=200), Console(file=io.StringIO()), {}) as view:
        view.scored(mine.cell, mine.scores)
    assert f"acc {interval}" in stream.getvalue()
    assert interval in _score_line(score)
    assert interval in wide_table([mine]).iloc[0].values
    screen([mine], Console(width=100, file=stream))
    assert "0.0[0.0,65.8]" in stream.getvalue()
    write_reports([mine], tmp_path)
    assert interval in (tmp_path / "cells" / f"{mine.id}.html").read_text(encoding="utf-8")
    assert interval in (tmp_path / "index.html").read_text(encoding="utf-8")
    (row,) = long_table([mine]).itertuples()
    assert (row.low, row.high) == (score.low, score.high)


@pytest.mark.parametrize(
    ("difference", "kind", "text"),
    [
        (Difference(0.2, 0.02, 0.16, 0.24, 9.0, 40, 40), "perplexity", f"{TIMES}1.221±0.049"),
        (Difference(0.2, 0.3, -0.6, 1.0, 9.0, 40, 40), "perplexity", f"{TIMES}1.2[0.5,2.7]"),
        (Difference(0.0, 0.2, -0.658, 0.658, 9.0, 2, 2), "acc", "0.0±65.8"),
        (Difference(-0.1, 0.2, -0.658, 0.1, 9.0, 2, 2), "acc", "-10.0[-65.8,+10.0]"),
        (
            Difference(0.2, 0.3, -math.inf, math.inf, 1.0, 2, 1),
            "perplexity",
            f"{TIMES}1.221[0.000,∞]",
        ),
    ],
)
def test_a_sign_stands_before_equal_halves_alone(
    difference: Difference, kind: str, text: str
) -> None:
    assert Contrast(difference, kind == "perplexity", kind == "acc", False).short == text


def test_every_score_and_figure_of_latency_has_its_unit() -> None:
    mine = record("rtn", 3, 0.1, latency=TIMED, bytes_on_disk=5)
    table = long_table([mine]).set_index("metric").unit
    assert table["kl_mean"] == table["gold_nll"] == "nats per token"
    assert (table["gold_logprob"], table["perplexity"]) == ("nats", "")
    assert table["acc"] == "share", "its value is not times 100"
    assert (table["batch_1_ms"], table["batch_1_speedup"]) == ("ms", "times dense")
    assert table["decode_tokens_per_second"] == "tokens per second"
    assert set(table[table == ""].index) == {"perplexity"}
    figure = quality_figure([mine], "mini-divergence", "kl_mean")
    assert "kl_mean in nats per token (log scale)" in figure.axes[0].get_ylabel()


@pytest.mark.usefixtures("without_pictures")
def test_below_which_divergence_there_is_rounding_stands_at_every_table(tmp_path: Path) -> None:
    facts = {"task": "mini-divergence", "metric": "kl_noise", "stderr": None, "n": 4}
    noise = Score(value=4.38e-7, higher_is_better=False, **facts)
    mine = record("rtn", 3, scores=(*scores(0.1, 3), noise))
    said = "mini-divergence of tiny: a KL below 4.4e-07 nats per token is rounding"
    stream = io.StringIO()
    screen([mine], Console(width=300, file=stream))
    write_reports([mine], tmp_path)
    told = [stream.getvalue().replace("\n", " ")]
    for name in ("leaderboard.md", "index.html", "leaderboard.tex"):
        told.append((tmp_path / name).read_text(encoding="utf-8"))
    assert all(said in text.replace("\\", "") for text in told)
    figure = quality_figure([mine], "mini-divergence", "kl_mean")
    assert "KL below 4.4e-07 nats per token is rounding." in figure.get_supxlabel()


def test_rounding_of_one_dtype_is_not_said_of_another() -> None:
    facts = {"task": "mini-divergence", "metric": "kl_noise", "stderr": None, "n": 4}
    cells = []
    for dtype, floor in (("float32", 5.1e-7), ("bfloat16", 1.1e-3)):
        noise = Score(value=floor, higher_is_better=False, **facts)
        mine = record("rtn", 3, scores=(*scores(0.1, 3), noise))
        cell = mine.cell.model_copy(update={"dtype": dtype})
        cells.append(mine.model_copy(update={"cell": cell, "id": cell.id}))
    assert sorted(line.partition(", as far")[0] for line in noise_lines(cells)) == [
        "mini-divergence of tiny, bfloat16: a KL below 1.1e-03 nats per token is rounding",
        "mini-divergence of tiny, float32: a KL below 5.1e-07 nats per token is rounding",
    ]
    (alone,) = noise_lines(cells[:1])
    assert alone.startswith("mini-divergence of tiny: a KL below 5.1e-07")
    note = quality_figure(cells, "mini-divergence", "kl_mean").get_supxlabel().replace("\n", " ")
    assert "5.1e-07 nats per token is rounding (float32)." in note
    assert "1.1e-03 nats per token is rounding (bfloat16)." in note


def test_a_score_stands_beside_its_difference_from_the_unquantized_model(tmp_path: Path) -> None:
    mine = stored([record("none", None), record("rtn", 3, 0.4)], tmp_path)
    text = markdown(mine, tmp_path)
    assert "| 18.90 ± 0.21 |" in text
    factor = math.exp(0.4)
    assert f"28.20 ({TIMES}{factor:.4f} " in text
    row = wide_table(mine, tmp_path).iloc[1]
    accuracy, low, high = (
        float(x) for x in re.findall(r"[-+]?\d+\.\d", row["mini-arc_easy acc %"])[1:]
    )
    assert low < accuracy < high and accuracy == pytest.approx(-9.0, abs=0.5)
    assert row["mini-divergence kl_mean in nats per token"] == "0.360 [0.340, 0.380]"
    table = long_table(mine, tmp_path)
    found = table[(table.method == "rtn") & (table.metric == "perplexity")].iloc[0]
    assert found.difference == pytest.approx(factor)
    assert found.difference_low < factor < found.difference_high
    assert (found.difference_kind, found.pairs, found.clusters) == ("ratio", 100, 100)
    assert list(table[table.method == "none"].difference_kind.unique()) == [""]
    stream = io.StringIO()
    screen(mine, Console(width=140, file=stream), tmp_path)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 100 and any(f"28.2 {TIMES}1.49" in line for line in lines)
    assert any("After a score: its difference" in line for line in lines)


def test_without_items_a_score_has_its_error(tmp_path: Path) -> None:
    mine = stored([record("none", None), record("rtn", 3, 0.4)], tmp_path)
    for path in (tmp_path / "samples").rglob("mini-text.jsonl"):
        path.write_text('{"half of a row')
    assert "28.20 ± 0.31" in markdown(mine, tmp_path)


def test_best_is_bold_only_where_pairs_tell_it_from_the_next(tmp_path: Path) -> None:
    pair = stored([record("rtn", 3, 0.4), record("gptq", 3, 0.2)], tmp_path)
    assert "**23.08 ± 0.26**" in markdown(pair, tmp_path)
    assert "**" not in markdown(pair)  # nothing is claimed without the items
    for rivals in (
        [record("rtn", 3, 0.3), record("gptq", 3, 0.3)],
        [record("rtn", 3, 0.2004), record("gptq", 3, 0.2)],
        [record("rtn", 2, 0.4), record("gptq", 3, 0.2)],
    ):
        assert "**" not in markdown(stored(rivals, tmp_path), tmp_path)


def test_bold_compares_at_measured_bits(tmp_path: Path) -> None:
    """At 3 nominal bits a method that takes half a bit more does not win by that."""
    cheap = record("rtn", 3, 0.4, bits_per_weight={"total": 3.25})
    dear = record("gptq", 3, 0.2, bits_per_weight={"total": 3.75})
    dearer = record("greedy", 3, 0.3, bits_per_weight={"total": 3.77})
    better_for_less = record("greedy", 2, 0.1, bits_per_weight={"total": 2.9})
    all_four = stored([cheap, dear, dearer, better_for_less], tmp_path)
    assert "**" not in markdown(all_four[:2], tmp_path)
    assert "**23.08 ± 0.26**" in markdown(all_four[:3], tmp_path)
    three = [all_four[0], all_four[1], all_four[3]]
    assert "**" not in markdown(three, tmp_path)


def test_scores_of_different_protocols_do_not_compete(tmp_path: Path) -> None:
    other = record("gptq", 3, 0.2)
    cell = other.cell.model_copy(
        update={"tasks": tuple(t.model_copy(update={"limit": 5}) for t in TASKS)}
    )
    both = [record("rtn", 3, 0.4), other.model_copy(update={"cell": cell, "id": cell.id})]
    assert "**" not in markdown(stored(both, tmp_path), tmp_path)


def asked(few: int | None, method: str, bits: int | None, damage: float = 0.0, **others) -> Record:
    """A record of a run with so many items of ARC, `others` being fields of its cell."""
    made = record(method, bits, damage)
    tasks = list(made.cell.tasks)
    tasks[2] = tasks[2].model_copy(update={"limit": few, "num_fewshot": 25 if few is None else 0})
    cell = made.cell.model_copy(update={"tasks": tuple(tasks)} | others)
    return made.model_copy(update={"cell": cell, "id": cell.id})


def test_two_protocols_of_a_task_have_two_columns_everywhere(tmp_path: Path) -> None:
    records = [
        asked(6, "none", None),
        asked(6, "rtn", 3, 0.4),
        asked(None, "none", None),
        asked(None, "rtn", 3, 0.3),
        asked(None, "greedy", 3, 0.5),
    ]
    records = stored(records, tmp_path)
    columns, rows = grid(records, tmp_path)
    few = "mini-arc_easy acc % [limit 6, 0-shot]"
    every = "mini-arc_easy acc % [all items, 25-shot]"
    assert few in columns and every in columns and "mini-arc_easy acc %" not in columns
    assert "mini-text perplexity" in columns, "what was asked alike has one column"
    for title in (few, every):
        place = columns.index(title)
        shown = [bool(row[place].text) for row in rows]
        assert sum(shown) == (2 if title == few else 3)
        assert not any(row[place].best for row in rows if not row[place].text)
    by_title = {headline.title: headline for headline in headlines(records)}
    for each in records:
        scores = [by_title[title].of(each) for title in (few, every)]
        assert sum(score is not None for score in scores) == 1
    table = long_table(records, tmp_path)
    ways = table[table.task == "mini-arc_easy"].groupby("asked")
    assert len(ways) == 2
    assert [sorted(set(rows.shots.dropna())) for _, rows in ways] in ([[0], [25]], [[25], [0]])
    names = {file_name("tiny", headline, BITS) for headline in by_title.values()}
    assert len(names) == len(by_title), "a picture for each"
    assert len(headlines(records[:2])) == len(headlines(records)) - 2
    assert "mini-arc_easy acc % " in f"{markdown(records[:2], tmp_path)}", "alone it needs no words"


def test_names_tell_revisions_of_one_model_across_methods() -> None:
    one_revision = [asked(6, "none", None), asked(6, "rtn", 3, 0.4)]
    assert list(names(one_revision).values()) == ["unquantized", "rtn"]
    two = [asked(6, "none", None), asked(6, "rtn", 3, 0.4, revision="v2")]
    assert list(names(two).values()) == ["unquantized revision=main", "rtn revision=v2"]


def test_no_difference_is_taken_across_machines_or_code_that_judges(tmp_path: Path) -> None:
    changes = ({"dtype": "bfloat16"}, {"evaluation": "ab"}, {"batch_size": 4}, {"revision": "v2"})
    for change in changes:
        base, other = asked(6, "none", None), asked(6, "rtn", 3, 0.4, **change)
        same = asked(6, "greedy", 3, 0.4)
        records = stored([base, other, same], tmp_path)
        pairs = Pairs(records, tmp_path)
        key = ("mini-arc_easy", "acc", "none")
        assert pairs.from_unquantized(records[1], key) is None
        assert pairs.from_unquantized(records[2], key) is not None
        assert winners(records, ("mini-text", "perplexity", "none"), pairs) == set()


def test_a_sample_file_that_is_not_the_recorded_one_is_not_paired(tmp_path: Path) -> None:
    records = stored([asked(6, "none", None), asked(6, "rtn", 3, 0.4)], tmp_path)
    key = ("mini-arc_easy", "acc", "none")
    path = tmp_path / records[1].scores[3].samples
    told = {"mini-arc_easy": {"samples_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}
    right = records[1].model_copy(update={"evaluation": told})
    assert Pairs(records, tmp_path).from_unquantized(right, key) is not None
    told["mini-arc_easy"]["samples_sha256"] = "0" * 64
    wrong = records[1].model_copy(update={"evaluation": told})
    assert Pairs(records, tmp_path).from_unquantized(wrong, key) is None


def test_what_may_be_wrong_stands_in_table_screen_and_csv(tmp_path: Path) -> None:
    large = Caution(kind="size", text="nothing was <gained>")
    odd = Caution(kind="looping", task="mini-gsm8k", text="all of them repeat")
    records = [record("none", None), record("rtn", 3, warnings=(large, odd))]
    records.append(record("greedy", 3, warnings=(large,)))
    text = markdown(records, tmp_path)
    assert "2 cells of tiny: nothing was" in text and "mini-gsm8k: all of them" in text
    console = Console(width=100, file=io.StringIO())
    screen(records, console, tmp_path)
    assert "warning  2 cells of tiny" in console.file.getvalue()
    table = long_table(records, tmp_path)
    mine = table[table.method == "rtn"]
    assert set(mine[mine.task == "mini-gsm8k"].warnings) == {"size looping"}
    assert set(mine[mine.task == "mini-text"].warnings) == {"size"}


def test_a_task_that_tells_no_methods_apart_names_every_model(tmp_path: Path) -> None:
    methods = [("none", None), ("rtn", 3), ("greedy", 3), ("alternating", 3)]
    cells = [
        record(method, bits, 0.3, model) for model in ("tiny", "other") for method, bits in methods
    ]
    records = stored(cells, tmp_path)
    said = summary(records, Pairs(records, tmp_path))
    where = [cells for cells, text in said if "does not tell the methods apart" in text]
    assert where and set(where) == {"other, tiny"}


def test_markdown_escapes_what_comes_from_outside(records: list[Record]) -> None:
    text = markdown(records)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| not finite" in text
    assert "by the interval of the paired difference" in text
    assert "not comparable with published scores" in text


def test_screen_fits_100_columns_and_gives_the_reason_below(records: list[Record]) -> None:
    stream = io.StringIO()
    screen(
        [*records, record("a_method_with_a_very_long_name_indeed", 3, 0.3)],
        Console(width=140, file=stream),
    )
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("failed  greedy 2b g64") and "<script>" in line for line in lines)
    assert any("ppl" in line and "nll" in line for line in lines)
    assert any("1.1e6±1e4" in line for line in lines)


@pytest.mark.parametrize("width", [50, 80, 100])
def test_scores_that_have_no_room_on_a_screen_are_named(records: list[Record], width: int) -> None:
    stream = io.StringIO()
    screen(records, Console(width=width, file=stream))
    lines = stream.getvalue().splitlines()
    text = " ".join(stream.getvalue().split())
    assert max(map(len, lines)) <= width
    assert ("no room for " in text) == (width < 100)
    assert ("mini-gsm8k gold_nll in nats per token; the files of the report" in text) == (
        width < 100
    )


def test_a_name_says_what_tells_a_cell_from_its_siblings() -> None:
    first, other = record("greedy", 3, 0.3), record("greedy", 3, 0.3)
    cell = other.cell.model_copy(update={"seed": 1, "scheme": Scheme(3, 128)})
    both = [first, other.model_copy(update={"cell": cell, "id": cell.id})]
    assert list(names(both).values()) == ["greedy g64 seed=0", "greedy g128 seed=1"]
    assert list(names([first]).values()) == ["greedy"]
    head = first.cell.model_copy(update={"scheme": Scheme(3, 64, head_bits=8)})
    recipes = [head.model_copy(update={"recipe": digit * 12}) for digit in "12"]
    by_recipe = [first.model_copy(update={"cell": cell, "id": cell.id}) for cell in recipes]
    told = ["greedy recipe=111111111111", "greedy recipe=222222222222"]
    assert list(names(by_recipe).values()) == told


def test_a_name_says_which_layers_have_bits_of_their_own() -> None:
    plain = record("greedy", 3, 0.3)
    few = (LayerRule("*.down_proj", 4),)
    many = (*few, *(LayerRule(f"model.layers.{index}.*", 8) for index in range(3)))
    sample = record("gptq", 3).cell.calibration
    asked = {
        "greedy": {"scheme": Scheme.at(3, 64)},
        "greedy *.down_proj=4": {"scheme": Scheme(3, 64, rules=few)},
        "greedy head 8b": {"scheme": Scheme(3, 64, head_bits=8), "recipe": "1" * 12},
    }
    divided = {"scheme": Scheme.at(2.5, 64), "calibration": sample, "recipe": "1" * 12}
    cells = [plain.cell.model_copy(update=changes) for changes in (*asked.values(), divided)]
    cells.append(plain.cell.model_copy(update={"scheme": Scheme(3, 64, rules=many)}))
    records = [plain.model_copy(update={"cell": cell, "id": cell.id}) for cell in cells]
    named = list(names(records).values())
    assert named[:4] == [*asked, "greedy"], "bits stand in a column of their own"
    assert re.fullmatch(r"greedy \+4 rules [0-9a-f]{8}", named[4])
    table = long_table(records).drop_duplicates("cell")
    assert sorted(map(float, table["bits"])) == [2.5, 3, 3, 3, 3]
    assert "3.0" not in {str(bits) for bits in table["bits"]}
    assert set(table["layers"]) >= {"", "*.down_proj=4", "head 8b"}


def test_what_layers_of_all_cells_have_is_said_below_the_table(tmp_path: Path) -> None:
    rules = (LayerRule("*.down_proj", 4),)
    records = []
    for bits in (2.5, 3):
        scheme = Scheme.at(bits, 64, rules=rules, head_bits=8)
        cell = record("greedy", 3, 0.3).cell.model_copy(update={"scheme": scheme})
        records.append(record("greedy", 3, 0.3).model_copy(update={"cell": cell, "id": cell.id}))
    assert list(names(records).values()) == ["greedy", "greedy"]
    said = "Parameters of all their cells: greedy layers=*.down_proj=4, head 8b."
    assert shared_parameters(records) == said
    assert said in markdown(records).replace("\\", "")


def test_a_task_we_do_not_know_gives_its_first_score() -> None:
    new = [
        Score(task="swag", metric=m, value=0.5, stderr=0.1, n=9, higher_is_better=True)
        for m in ("acc", "acc_norm")
    ]
    found = headlines([record("rtn", 3, scores=(*new, *scores(0.1, 3)))])
    assert [h.title for h in found if h.task == "swag"] == ["swag acc"]
    assert found[-1].task == "swag"


# ---- pictures


def test_figure_has_a_baseline_and_one_line_per_method(records: list[Record]) -> None:
    figure = quality_figure(records, "mini-text", "perplexity")
    (axes,) = figure.axes
    assert len(lines_of(figure)) == len(DAMAGE)
    base = [line for line in axes.lines if line.get_label() == "unquantized"]
    assert [set(line.get_ydata()) for line in base] == [{18.9}]
    assert "lower is better" in axes.get_ylabel()
    assert axes.get_yscale() == "log"
    assert len({text.get_text() for text in figure.legends[0].get_texts()}) == len(DAMAGE)
    assert "greedy 2b g64" in " ".join(figure.get_supxlabel().split())


def test_points_are_drawn_at_their_measured_bits(records: list[Record]) -> None:
    """Where they are on the page, not only what the line was given."""
    figure = quality_figure(records, "mini-text", "perplexity")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    measured = {
        record.bits_per_weight["total"]
        for record in records
        if record.status == "ok" and record.cell.scheme
    }
    drawn = set()
    for container in axes.containers:
        line = container.lines[0]
        places = line.get_transform().transform(line.get_xydata())
        drawn |= set(axes.transData.inverted().transform(places)[:, 0].round(6))
    assert sorted(drawn) == pytest.approx(sorted(measured))


@pytest.mark.parametrize("span", [1.02, 1.3, 2.0, 4.9, 30.0, 1000.0, 1e7])
def test_a_logarithmic_axis_has_at_least_three_ticks(span: float) -> None:
    damages = (0.0, math.log(span) / 2, math.log(span))
    methods = ("rtn", "gptq", "alternating")
    mine = [record(name, 3, damage) for name, damage in zip(methods, damages, strict=True)]
    figure = quality_figure(mine, "mini-text", "perplexity")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert 3 <= sum(low <= tick <= high for tick in axes.get_yticks()) <= 12


def test_a_collapsed_point_is_drawn_at_the_edge_with_its_value(records: list[Record]) -> None:
    figure = quality_figure(records, "mini-text", "perplexity")
    assert max(max(line) for line in lines_of(figure)) == pytest.approx(30 * 18.9)
    assert "↑ 1.1e6" in {text.get_text() for text in figure.axes[0].texts}


def test_the_value_of_a_collapsed_point_stands_within_the_frame(records: list[Record]) -> None:
    last = record("greedy", 8, 14.0)  # the most bits of all
    figure = quality_figure([*records, last], "mini-text", "perplexity")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    values = [text for text in axes.texts if text.get_text().startswith("↑")]
    assert len(values) > 1
    for text in values:
        extent = text.get_window_extent()
        assert axes.bbox.x0 <= extent.x0 and extent.x1 <= axes.bbox.x1, text.get_text()


@pytest.mark.parametrize("metric", ["perplexity", "acc"])
@pytest.mark.parametrize("damage", [0.0, 0.005, 0.01, 0.02])
def test_the_name_of_the_baseline_stands_clear_of_bits(metric: str, damage: float) -> None:
    records = [record("none", None, damage), record("rtn", 2, 0.0), record("rtn", 3, 0.0)]
    task = "mini-text" if metric == "perplexity" else "mini-arc_easy"
    figure = quality_figure(records, task, metric)
    figure.canvas.draw()
    texts = {text.get_text(): text for text in figure.axes[0].texts}
    name = texts["unquantized"].get_window_extent()
    assert figure.axes[0].bbox.contains(name.x1, name.y0), "within the frame"
    for bits in ("2-bit", "3-bit"):
        assert not name.overlaps(texts[bits].get_window_extent())


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_what_cannot_be_drawn_is_named(value: float) -> None:
    odd = Score(
        task="mini-text", metric="perplexity", value=value, stderr=None, n=1, higher_is_better=False
    )
    figure = quality_figure(
        [record("rtn", 3, 0.3), record("gptq", 3, scores=(odd,))], "mini-text", "perplexity"
    )
    assert len(lines_of(figure)) == 1
    assert "Not drawn" in figure.get_supxlabel()
    assert "gptq 3b g64" in " ".join(figure.get_supxlabel().split())


def test_the_baseline_alone_is_a_picture() -> None:
    assert lines_of(quality_figure([record("none", None)], "mini-arc_easy", "acc")) == []


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_pictures_of_two_models_have_their_own_files(tmp_path: Path) -> None:
    few = scores(0.3, 3)[:2]  # of each a picture
    two = [record("rtn", 3, scores=few), record("rtn", 3, scores=few, model="zoo/other$x_1")]
    # in which a dot is no ending
    two.append(record("rtn", 3, scores=few, model="qwen2.5-coder-1.5b"))
    paths = pictures.write(two, tmp_path) + plots.write(two, tmp_path)
    there = {path.name for path in paths}
    slug = f"zoo-other-x_1-{digest('zoo/other$x_1')[:4]}"
    assert {"quality.png", f"quality-{slug}.png"} <= there
    assert "tiny-mini-text-perplexity-against-measured-bits-per-weight.svg" in there
    assert f"{slug}-mini-text-perplexity-against-measured-bits-per-weight.pdf" in there
    assert "qwen2.5-coder-1.5b-mini-text-perplexity-against-measured-bits-per-weight.pdf" in there
    assert files_of(tmp_path) == set(paths) and len(set(paths)) == len(paths)
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_a_bar_of_a_score_alone_knows_how_few_its_clusters_are() -> None:
    """Student's quantile of 3 degrees of freedom; a normal one where an older record lacks them."""
    facts = {"task": "wikitext", "metric": "nll", "n": 40, "higher_is_better": False}
    score = Score(value=3.0, stderr=0.1, degrees=3.0, **facts)
    assert _ends(score, None, 1.0) == pytest.approx((3 - 0.31824, 3 + 0.31824), abs=1e-4)
    older = Score(value=3.0, stderr=0.1, **facts)
    assert _ends(older, None, 1.0) == pytest.approx((3 - 0.19600, 3 + 0.19600), abs=1e-4)


def test_an_error_of_a_few_clusters_is_written_as_the_interval_that_it_stands_for() -> None:
    """Student's quantiles: 12.706 of 1 degree of freedom, 4.303 of 2; a perplexity's on its log."""
    facts = {"task": "wikitext", "n": 40, "higher_is_better": False}
    nll = Score(metric="nll", value=3.0, stderr=0.1, degrees=1.0, **facts)
    assert score_text(nll) == "3.0 [1.7, 4.3]"
    assert score_text(nll.model_copy(update={"degrees": 30.0})) == "3.00 ± 0.10"
    perplexity = Score(metric="perplexity", value=20.0, stderr=2.0, degrees=2.0, **facts)
    ends = (20 / math.exp(0.4303), 20 * math.exp(0.4303))
    assert student_interval(perplexity) == pytest.approx(ends, rel=1e-3)


@pytest.mark.parametrize(
    "metric, value, stderr, text",
    [
        ("divergence top1_agreement", 0.996, 0.001, "99.6 [98.3, 100.0]"),
        ("divergence top1_agreement", 1.0, 0.0, "100.0"),
        ("divergence kl_mean", 0.001, 0.0006, "0.0010 [0.0000, 0.0086]"),
        ("arc_easy gold_logprob", -3.6, 0.7, "-3.6 [-12.5, 0.0]"),
    ],
)
def test_an_interval_of_a_few_clusters_ends_where_the_score_does(metric, value, stderr, text):
    task, metric = metric.split()
    facts = {"task": task, "metric": metric, "n": 4, "degrees": 1.0}
    facts["higher_is_better"] = metric != "kl_mean"
    assert score_text(Score(value=value, stderr=stderr, **facts)) == text


def test_a_bar_is_the_interval_of_the_paired_difference(tmp_path: Path) -> None:
    mine = stored([record("none", None), record("rtn", 3, 0.4)], tmp_path)
    for task, metric in (("mini-text", "perplexity"), ("mini-arc_easy", "acc")):
        key = (task, metric, "none")
        contrast = Pairs(mine, tmp_path).from_unquantized(mine[1], key)
        assert contrast is not None
        figure = quality_figure(mine, task, metric, folder=tmp_path)
        (container,) = figure.axes[0].containers
        ((_, low), (_, high)) = container.lines[2][0].get_segments()[0]
        (base,) = {score.value for score in mine[0].scores if score.metric == metric}
        ends = contrast.figures[1:]
        if contrast.ratio:
            assert (low, high) == pytest.approx([base * end for end in ends])
        else:
            assert (low, high) == pytest.approx([100 * base + end for end in ends])
        assert "interval of the paired difference" in " ".join(figure.get_supxlabel().split())
        assert f"{contrast.text} from the unquantized" in plots.svg(figure)
    alone = quality_figure(mine, "mini-text", "perplexity")
    assert "of the score alone" in " ".join(alone.get_supxlabel().split())


def test_a_method_looks_the_same_in_all_pictures_and_unlike_all_others() -> None:
    ours = [name for name in declarations() if name != "none"]
    every = looks([record(name, 3, 0.1) for name in ours])
    distinct = {(look["color"], look["marker"], look["linestyle"]) for look in every.values()}
    assert len(every) == len(distinct) == len(ours) >= 13
    assert len({look["color"] for look in every.values()}) >= 13
    few = looks([record("uniquanf", 3, 0.1), record("mine", 3, 0.1), record("awq", 4, 0.1)])
    for name in ("uniquanf", "awq"):
        assert few[name] == every[name]


def test_the_legend_of_twelve_methods_with_two_groups_is_whole() -> None:
    mine = []
    for method in [name for name in declarations() if name != "none"][:12]:
        for group in (64, 128):
            cell = record(method, 3, 0.3).cell.model_copy(update={"scheme": Scheme(3, group)})
            mine.append(record(method, 3, 0.3).model_copy(update={"cell": cell, "id": cell.id}))
    for figure in (
        quality_figure(mine, "mini-text", "perplexity"),
        plots.first_figure(mine, "tiny"),
    ):
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert len(legend.get_texts()) == 24
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


def test_a_point_is_named_and_leads_to_its_cell() -> None:
    cell = record("rtn", 3, 0.3)
    text = plots.svg(quality_figure([record("none", None), cell], "mini-text", "perplexity"), "x-")
    assert re.search(rf'id="x-point-{cell.id}">\s*<title>rtn 3b g64 clip=search period=4: ', text)
    assert "<a " not in text
    linked = plots.svg(quality_figure([cell], "mini-text", "perplexity"), "x-", "cells")
    assert f'<a href="cells/{cell.id}.html"' in linked
    assert "measured bits per weight</text>" in linked


def test_a_picture_stays_light() -> None:
    many = [record(f"m{i}", bits, 0.1 * i) for i in range(12) for bits in (2, 3, 4)]
    text = plots.svg(quality_figure(many, "mini-text", "perplexity"), "x-", "cells")
    assert len(text) < 300_000


def test_the_frontier_is_what_no_other_cell_beats() -> None:
    points = [
        Point(x, y, y, y, False, None, False, f"{x}", (), "")
        for x, y in ((2, 5), (3, 6), (3, 4), (4, 4), (5, 1))
    ]
    assert [(point.x, point.y) for point in frontier(points, 1)] == [(2, 5), (3, 4), (5, 1)]
    assert [(point.x, point.y) for point in frontier(points, -1)] == [(2, 5), (3, 6)]


def test_sizes_that_differ_by_bytes_stand_above_each_other() -> None:
    sizes = {"rtn": 160_931_000, "gptq": 160_931_250}
    cells = [record(name, 3, 0.3, bytes_on_disk=size) for name, size in sizes.items()]
    model, headline, cost = next(
        picture for picture in pictures.offered(cells) if picture[2].short == "size on disk"
    )
    (axes,) = plots.headline_figure(cells, headline, model, cost).axes
    low, high = axes.get_xlim()
    assert high - low > 4 and low < 160.931 < high, "in MB"


def test_scores_are_drawn_against_size_and_latency_where_they_are_known() -> None:
    sized = record("rtn", 3, 0.3, bytes_on_disk=70_000_000)
    costs = {cost.short for _, _, cost in pictures.offered([record("none", None), sized])}
    assert costs == {"measured bits per weight", "size on disk"}


# ---- page


def test_page_is_whole_escaped_and_asks_for_nothing(
    records: list[Record], report: list[Path]
) -> None:
    folder = at(report, "index.html").parent
    names = {str(path.relative_to(folder)) for path in report}
    assert {f"leaderboard.{kind}" for kind in ("md", "csv", "jsonl", "tex")} <= names
    assert {"quality.png", "index.html", "methods/rtn.html"} <= names
    assert {f"cells/{record.id}.html" for record in records} <= names
    assert files_of(folder) == set(report)  # no temporary file stays
    assert {path.parent for path in report} - {folder} == {folder / name for name in FOLDERS}
    for page in folder.rglob("*.html"):
        for link in re.findall(r'href="([^"#][^"]*)"', page.read_text(encoding="utf-8")):
            assert (page.parent / link).is_file(), f"{page.name} leads to {link}"
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "Xeon &amp; co" in text
    assert not re.search(r'<link|<img|@import|\bsrc=|url\((?!#)|href="[a-z]+:|href="/', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert text.count("<svg") == len(plots.leading(records))
    assert "not comparable with published scores" in text
    cell = folder / "cells" / f"{records[4].id}.html"
    assert records[4].command in cell.read_text(encoding="utf-8")


@pytest.mark.parametrize("write", writers().values(), ids=writers())
def test_a_report_writes_what_it_names_whatever_the_records_are(
    write: Callable[[Sequence[Record], Path], list[Path]], tmp_path: Path
) -> None:
    cases = {
        "all": [record("none", None), record("rtn", 3, 0.3), failed("greedy", 2)],
        "baseline": [record("none", None)],
        "failures": [failed("rtn", 2)],
    }
    for name, cells in cases.items():
        first, again = tmp_path / name / "first", tmp_path / name / "again"
        paths = write(cells, first)
        assert set(paths) == files_of(first)
        assert paths or write is pictures.write
        contents = [path.read_bytes() for path in paths]
        assert contents == [path.read_bytes() for path in write(cells, again)]


def test_the_axis_of_a_single_divergence_without_a_spread_has_room():
    lone = record("rtn", 4)
    score = Score(
        task="mini-divergence",
        metric="kl_mean",
        filter="none",
        value=0.8411489559458817,
        stderr=None,
        n=1,
        higher_is_better=False,
    )
    lone = lone.model_copy(update={"scores": (score,)})
    figure = quality_figure([lone], "mini-divergence", "kl_mean")
    low, high = figure.axes[0].get_ylim()
    assert high > 1.04 * low and f"point-{lone.id}" in plots.svg(figure)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_report_that_raises_is_named_and_the_others_are_written(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(records: Sequence[Record], folder: Path) -> list[Path]:
        raise ZeroDivisionError("by zero")

    known = writers()
    monkeypatch.setattr("qbench.reports.registry.writers", lambda: {"mine": broken} | known)
    monkeypatch.setattr("qbench.reports.registry.MANY", 1)
    with pytest.raises(ConfigError, match="report 'mine' cannot be written: ZeroDivisionError: by"):
        write_reports([record("rtn", 3, 0.3)], tmp_path, processes)
    assert len(list(tmp_path.iterdir())) == EVERYTHING


def _exits(records: list[Record], folder: Path) -> list[Path]:
    raise SystemExit(0)


def _takes_away(records: list[Record], folder: Path) -> list[Path]:
    records.clear()
    raise ZeroDivisionError("by zero")


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("mine", "reason"),
    [
        (_exits, "SystemExit: 0"),
        (_takes_away, "ZeroDivisionError: by zero"),
        (lambda records, folder: None, "TypeError: write gave None, and not the list of its paths"),
        (lambda records, folder: "a.txt", "TypeError: write gave 'a.txt', and not the list"),
    ],
)
def test_whatever_a_report_does_the_others_are_written(
    mine: Callable[..., Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = writers()
    monkeypatch.setattr("qbench.reports.registry.writers", lambda: {"mine": mine} | known)
    with pytest.raises(ConfigError) as caught:
        write_reports([record("rtn", 3, 0.3)], tmp_path)
    assert str(caught.value).startswith(f"report 'mine' cannot be written: {reason}")
    assert len(list(tmp_path.iterdir())) == EVERYTHING


def test_a_report_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qbench.reports

    monkeypatch.setattr(qbench.reports, "__path__", [str(tmp_path)])
    (tmp_path / "of_ours.py").write_text("import a_library_that_nobody_has")
    (tmp_path / "that_ends.py").write_text("raise SystemExit(0)")
    for name, write in writers().items():
        with pytest.raises((ModuleNotFoundError, SystemExit)):
            write([], tmp_path)
        monkeypatch.setattr("qbench.reports.registry.writers", lambda mine={name: write}: mine)
        with pytest.raises(ConfigError, match=f"report '{name}' cannot be written: "):
            write_reports([record("rtn", 3, 0.3)], tmp_path / name)


def test_two_processes_write_what_one_writes(
    records: list[Record], report: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qbench.reports.registry.MANY", 1)
    again = write_reports(records, tmp_path, processes=2)
    assert [path.name for path in again] == [path.name for path in report]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in report]


def test_only_failures_still_make_a_report(tmp_path: Path) -> None:
    lost = [failed("rtn", 2), failed("gptq", 2)]
    write_reports(lost, tmp_path)
    assert "no cell of this model has a score" in (tmp_path / "index.html").read_text(
        encoding="utf-8"
    )
    screen(lost, Console(file=io.StringIO()))
    assert len(long_table(lost)) == len(wide_table(lost)) == 2


def test_no_records_is_one_clear_sentence(tmp_path: Path) -> None:
    for use in (
        markdown,
        lambda r: write_reports(r, tmp_path),
        lambda r: pictures.write(r, tmp_path),
    ):
        with pytest.raises(DataError, match="there are no records to report"):
            use([])
    assert list(tmp_path.iterdir()) == []
    assert tuple(long_table([]).columns) == COLUMNS


def test_a_folder_that_cannot_be_written_is_one_clear_sentence(
    records: list[Record], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="the report of .*cannot be written .*; copy it"):
        write_reports(records[:2], tmp_path / "file")


def test_a_failed_write_keeps_the_old_file(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaderboard.md").write_text("old")

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_reports(records[:2], tmp_path)
    assert {path: path.read_text() for path in files_of(tmp_path)} == {
        tmp_path / "leaderboard.md": "old"
    }


@pytest.mark.slow
def test_reports_do_not_import_torch() -> None:
    code = (
        "import qbench.reports.page, sys; "
        "assert not {'torch', 'transformers', 'lm_eval'} & set(sys.modules)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("without_pictures")
def test_a_score_that_may_say_nothing_is_marked_and_explained_everywhere(tmp_path: Path) -> None:
    doubted = tuple(
        score.model_copy(update={"suspicion": "all choices are equally likely, on every item"})
        if score.metric == "acc"
        else score
        for score in scores(0.2, 3)
    )
    mine = [record("rtn", 3, 0.2), record("gptq", 3, scores=doubted)]
    text = markdown(mine)
    assert text.count("(?)") == 2 and "## Scores that may say nothing" in text
    stream = io.StringIO()
    screen(mine, Console(width=140, file=stream))
    said = "mini-arc_easy acc: all choices are equally likely, on every item"
    assert said in text.replace("\\", "")
    assert f"doubtful  gptq 3b g64  {said}" in " ".join(stream.getvalue().split(" "))
    write_reports(mine, tmp_path)
    assert said in (tmp_path / "index.html").read_text()
