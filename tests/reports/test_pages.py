"""The ranking, the pages of cells and methods, and the tables for programs and papers."""

from __future__ import annotations

import inspect
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from qbench.comparison import digits, pairs
from qbench.comparison.pairs import Pairs
from qbench.comparison.samples import items_file
from qbench.records import Record
from qbench.reports import (
    cell_names,
    cell_pages,
    headline,
    json_lines,
    latencies,
    latex,
    method_pages,
    noise,
    quoted,
    tables,
)
from qbench.reports.cell_names import names, shared_parameters
from qbench.reports.changed_items import changed_item, changed_items
from qbench.reports.doubts import doubts
from qbench.reports.explanations import METRICS
from qbench.reports.layer_errors import heat_map
from qbench.reports.long_table import long_table
from qbench.reports.page import html
from qbench.reports.ranking import filters, ranking
from qbench.tasks.registry import ordered_tasks
from synthetic_records import TIMED, failed, record, stored

TRAINED = {
    "block 0": {"initial": 0.4, "final": 0.1, "losses": [0.4, 0.2, 0.1]},
    "block 1": {"initial": 0.5, "final": 0.5, "losses": [0.5]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Record], Path]:
    """A run's records and its folder, with the items of every score."""
    folder = tmp_path_factory.mktemp("run")
    cells = [
        record("none", None),
        record("rtn", 3, 0.5),
        record("gptq", 3, 0.2, latency=TIMED, log=TRAINED, bytes_on_disk=5_000_000),
        record("gptq", 4, 0.05),
    ]
    return [*stored(cells, folder), failed("awq", 3)], folder


def test_cells_are_ranked_within_their_bits_by_pairs(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    columns, rows = ranking(records, folder)
    assert [column.heading for column in columns][:2] == ["#", "method"]
    shown = [(row.entries[0].text, row.entries[1].text, row.entries[2].text) for row in rows]
    assert shown[0] == ("", "unquantized", "")
    assert [(rank, name.split()[0], bits) for rank, name, bits in shown[1:]] == [
        ("1", "gptq", "3"),
        ("2", "rtn", "3"),
        ("", "awq", "3"),
        ("1", "gptq", "4"),
    ]
    assert rows[1].entries[1].href == f"cells/{records[2].id}.html"


def test_without_items_nothing_is_ranked(run: tuple[list[Record], Path]) -> None:
    records, _ = run
    _, rows = ranking([cell.model_copy(update={"scores": cell.scores}) for cell in records], None)
    places = {row.entries[0].text for row in rows}
    assert places == {""}, "that nothing can be paired is no first place"


def test_filters_offer_what_there_is(run: tuple[list[Record], Path]) -> None:
    records, _ = run
    choices = {choice.key: choice.choices for choice in filters(records)}
    assert choices["bits"] == ["3", "4"]
    assert choices["status"] == ["ok", "failed"]
    assert "unquantized" in choices["method"]
    _, rows = ranking(records)
    for choice in filters(records):
        assert {row.filters[choice.place] for row in rows} - {""} == set(choice.choices)
    assert 'name="bits" data-place="1"' in html(records)  # that of the model is left out


class Filtered(HTMLParser):
    """What the page's script sees: the choices by their place, and the values of each row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.choices: dict[int, list[str]] = {}
        self.rows: list[list[str]] = []
        self.place: int | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "select":
            place = found.get("data-place")
            self.place = int(place) if place else None
        elif tag == "option" and self.place is not None and found["value"]:
            self.choices.setdefault(self.place, []).append(json.loads(found["value"]))
        elif tag == "tr" and "data-f" in found:
            self.rows.append(json.loads(found["data-f"] or ""))


def test_every_name_can_be_filtered_by() -> None:
    models = ["tiny|b", "a  b", 'it\'s "<b>" & more', "line\nend\x1b"]
    cells = [record("rtn", bits, 0.5, model=model) for model in models for bits in (3, 4)]
    seen = Filtered(html(cells))
    assert sorted(seen.choices[0]) == sorted(models) and seen.choices[1] == ["3", "4"]
    for place, choices in seen.choices.items():
        assert {row[place] for row in seen.rows} == set(choices), place


def test_tasks_and_formats_are_chosen_above_the_table(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    mine = [*records, record("alternating", 3, 0.3)]
    columns, rows = ranking(mine, folder)
    (choice,) = [choice for choice in filters(mine) if choice.key == "format"]
    assert choice.choices == ["dense", "binary", "uniform"]
    place = [column.heading for column in columns].index("format")
    assert [row.entries[place].text for row in rows] == [row.filters[choice.place] for row in rows]
    text = html(mine, folder)
    tasks = ["mini-text", "mini-divergence", "mini-arc_easy", "mini-gsm8k"]
    options = "".join(f"<option>{task}</option>" for task in tasks)
    assert f'<select name="task"><option value="">all</option>{options}' in text
    heads = re.findall(r'<th [^>]*data-task="([^"]+)"', text)
    assert list(dict.fromkeys(heads)) == tasks
    assert len(heads) == len([column for column in columns if column.task])


def test_the_page_shows_latency_and_a_phone_sees_scores(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    text = html(records, folder)
    assert "tokens/s" in text
    heads = text.split("<thead>")[1].split("</thead>")[0].split("<th ")[1:]
    narrow = [head for head in heads if "extra" not in head]
    assert len(narrow) == 4  # method, bits and the two leading scores
    assert "<main>" in text
    columns, _ = ranking([*records, record("rtn", 3, model="other")], folder)
    narrow = [column.heading for column in columns if not column.extra]
    assert narrow[:2] == ["model", "method"], "cells of several models are told apart"


def test_a_long_name_takes_several_lines() -> None:
    name = "a" * 120
    text = html([record("rtn", 3, 0.5, model=name), record("rtn", 3, 0.5)])
    assert f'<td class="word long">{name}' in text and '<td class="word">tiny' in text
    style = text.split("<style>")[1].split("</style>")[0]
    (rule,) = re.findall(r"^main {(.*)}", style, re.MULTILINE)
    assert "overflow-wrap: break-word" in rule, "headings and paragraphs have names, too"


def test_a_cell_page_has_scores_changes_latency_losses_and_command(
    run: tuple[list[Record], Path], tmp_path: Path
) -> None:
    records, folder = run
    paths = cell_pages.write(records, folder)
    assert [path.parent.name for path in paths] == ["cells"] * len(records)
    text = (folder / "cells" / f"{records[2].id}.html").read_text(encoding="utf-8")
    for part in ("Items that changed", "right to wrong", "64 x 32", "20.0 tokens per second"):
        assert part in text
    assert "<polyline" in text and ">0.25<" in text and ">1.00<" in text
    assert records[2].command in text
    lost = (folder / "cells" / f"{records[4].id}.html").read_text(encoding="utf-8")
    assert "failed: &lt;script&gt;" in lost


def test_a_heat_map_has_a_tile_for_each_layer_darker_where_the_error_is_larger() -> None:
    log = {
        f"model.layers.{block}": {
            "output_errors": {
                "self_attn.q_proj": 0.01 * 10**block,
                "mlp.down_proj": 0.02 * 10**block,
            }
        }
        for block in range(3)
    }
    heat = heat_map(log)
    assert heat is not None and "output" in heat.meaning
    assert [kind for _, kind in heat.rows] == ["self_attn.q_proj", "mlp.down_proj"]
    assert [block for _, block in heat.columns] == ["0", "1", "2"]
    assert heat.tiles[0].text == "block 0, self_attn.q_proj: 0.01"
    places = {(tile.x, tile.y) for tile in heat.tiles}
    assert len(places) == len(heat.tiles) == 6
    lightness = [int(re.findall(r"(\d+)%", tile.colour)[1]) for tile in heat.tiles]
    by_error = [lightness[k] for k in (0, 1, 2, 3, 4, 5)]  # the errors ascend in this order
    assert by_error == sorted(by_error, reverse=True) and by_error[0] > by_error[-1]
    assert [shown for _, _, shown in heat.legend][:: len(heat.legend) - 1] == ["0.01", "2"]
    assert heat.legend[-1][1] == heat.tiles[-1].colour


def test_a_heat_map_of_a_search_is_what_it_left_of_plain_rounding() -> None:
    site = {"plain": 0.4, "scaled": 0.3, "clipped": 0.2}
    heat = heat_map({"h.1": {"q k v": site, "o": {"plain": 0.5, "scaled": 0.5}}})
    assert heat is not None and "plain rounding" in heat.meaning
    assert [tile.text for tile in heat.tiles] == ["block 1, q k v: 0.5", "block 1, o: 1"]


@pytest.mark.parametrize(
    "log", [{}, TRAINED, {"h.0": {"weight_errors": {"q": None, "k": "much"}}}, {"h.0": 3}]
)
def test_a_log_without_errors_of_layers_has_no_heat_map(log: dict[str, object]) -> None:
    assert heat_map(log) is None


def test_a_heat_map_holds_where_all_errors_are_alike_or_none() -> None:
    heat = heat_map({"h.0": {"weight_errors": {"q": 0.0, "k": 0.0}}})
    assert heat is not None and len(heat.tiles) == 2


def test_texts_of_changed_items_are_shown_escaped_and_bounded(
    run: tuple[list[Record], Path],
) -> None:
    records, folder = run
    (spec,) = [spec for spec in records[1].cell.tasks if spec.name == "mini-arc_easy"]
    lines = []
    for number in range(100):
        fields = {"question": f"<b>{number}</b> " + 5000 * "x", "choices": ["a", "b"]}
        lines.append(json.dumps({"item": str(number), "fields": fields}) + "\n")
    path = folder / items_file(spec)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines))
    (arc, *_) = changed_items(records, records[1], Pairs(records, folder))
    assert arc.known
    assert all(len(text) < 1600 for item in arc.items for _, text in item.facts)
    cell_pages.write(records, folder)
    text = (folder / "cells" / f"{records[1].id}.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in text and "<b>" not in text
    path.unlink()
    cell_pages.write(records, folder)
    text = (folder / "cells" / f"{records[1].id}.html").read_text(encoding="utf-8")
    assert "The questions are not shown" in text


def test_choices_of_a_changed_item_say_which_is_right_and_which_was_chosen() -> None:
    old = {"doc_id": 3, "target": 1, "acc": 1.0, "loglikelihoods": [-3.0, -1.0]}
    new = {"doc_id": 3, "target": 1, "acc": 0.0, "loglikelihoods": [-1.5, -2.0]}
    fields = {"question": "Wet?", "choices": ["sand", "sea"], "answerKey": "B"}
    change = changed_item("right to wrong", old, new, fields)
    assert (change.name, change.title) == ("3", "Wet?")
    sand, sea = change.choices
    assert (sand.text, sand.right, sand.chosen_before, sand.chosen_after) == (
        "sand",
        False,
        False,
        True,
    )
    assert (sea.before, sea.after, sea.right, sea.chosen_before) == ("-1.00", "-2.00", True, True)
    assert ("answerKey", "B") in change.facts
    bare = changed_item("right to wrong", old, new, {})
    assert [choice.text for choice in bare.choices] == ["choice 1", "choice 2"]
    assert bare.title == ""


def test_published_numbers_stand_apart_and_say_where_they_are_from(tmp_path: Path) -> None:
    (path,) = quoted.write([record("rtn", 3, 0.1)], tmp_path)
    table = pd.read_csv(path)
    assert len(table) > 50 and not table.isna().any().any()
    assert set(table.reading) == {"source", "second-hand"}
    own, others = quoted.by_model(["meta-llama/Meta-Llama-3-8B@abc"])
    assert {entry.model for entry in own} == {"Llama-3 8B"}
    assert quoted.by_model(["llama3-8b"])[0] == own
    assert len(own) + len(others) == len(quoted.published())
    text = html([record("rtn", 3, 0.1)])
    before, _, after = text.partition("Published numbers</h2>")
    assert ">61.43<" in after and ">61.43<" not in before
    assert after.index("<summary>None is known of this model") < after.index("61.43")
    text = html([record("rtn", 3, 0.1, model="llama3-8b")])
    assert text.index("61.43") < text.index("<summary>Of other models")
    assert "61.43" not in long_table([record("rtn", 3, 0.1, model="llama3-8b")]).to_csv()


@pytest.mark.parametrize(
    "row", [["rtn", "3 bits"], ["rtn", "3 bits", "high"], ["rtn", 3, 1.0], [1, "3 bits", 1.0]]
)
def test_a_published_table_with_an_odd_row_is_refused(row: list[object]) -> None:
    fine = quoted.published()[0].model_dump()
    with pytest.raises(ValidationError, match="is not a method, a scheme and 1 values"):
        quoted.Quoted.model_validate(fine | {"rows": [row]})


def test_parameters_that_all_cells_of_a_method_share_are_told_once(tmp_path: Path) -> None:
    mine = [record("rtn", 3, 0.1), record("rtn", 4, 0.1)]
    assert set(names(mine).values()) == {"rtn"}
    said = "Parameters of all their cells: rtn clip=search period=4."
    assert shared_parameters(mine) == said
    assert said in html(mine)
    cell = mine[1].cell.model_copy(update={"params": {"period": 8, "clip": "search"}})
    differing = [mine[0], mine[1].model_copy(update={"cell": cell, "id": cell.id})]
    assert list(names(differing).values()) == ["rtn period=4", "rtn period=8"]
    assert shared_parameters(differing) == "Parameters of all their cells: rtn clip=search."
    assert shared_parameters([record("gptq", 3, 0.1)]) == ""


def test_every_column_of_the_page_is_explained(run: tuple[list[Record], Path]) -> None:
    columns, _ = ranking(run[0])
    assert [column.heading for column in columns if not column.explanation] == []


def test_every_score_that_a_task_declares_is_explained() -> None:
    declared = {score.metric for task in ordered_tasks() for score in task.scores}
    assert declared - METRICS.keys() == set()


def test_a_doubt_of_many_cells_is_one_line() -> None:
    why = "at the floor: 25 % right of 20 is not above the 25 % of guessing"
    doubted = []
    for bits in (2, 3, 4):
        cell = record("gptq", bits, 0.2)
        marked = [score.model_copy(update={"suspicion": why}) for score in cell.scores[-1:]]
        doubted.append(cell.model_copy(update={"scores": (*cell.scores[:-1], *marked)}))
    ((cells, text),) = doubts(doubted)
    assert cells == "3 cells of tiny"
    assert text == "mini-gsm8k gold_nll: at the floor; for gptq 2b g64: " + why[14:]


def test_doubts_of_one_task_and_of_its_parts_are_one_line() -> None:
    why = "at the floor: 20 % right of 5 is not above the 25 % of guessing"
    cell = record("gptq", 3, 0.2)
    (own,) = [spec for spec in cell.cell.tasks if spec.name == "mini-arc_easy"]
    mmlu = own.model_copy(update={"name": "mini-mmlu"})
    pattern = cell.scores[-1].model_copy(update={"suspicion": why})
    doubted = []
    for task, metric in (
        ("mini-mmlu_stem", "acc"),
        ("mini-mmlu_law", "acc"),
        ("mini-mmlu", "acc"),
        ("mini-mmlu", "acc_macro"),
        ("mini-mmlu_pro", "acc"),
    ):
        doubted.append(pattern.model_copy(update={"task": task, "metric": metric}))
    changed = cell.cell.model_copy(update={"tasks": (mmlu,)})
    one = cell.model_copy(update={"cell": changed, "scores": tuple(doubted)})
    ((cells, text),) = doubts([one])
    assert cells == "tiny gptq 3b g64"
    assert text.startswith("mini-mmlu acc, acc_macro, and acc of 3 parts (stem, law, pro): at the")
    assert text.endswith("; for mini-mmlu acc: " + why[14:])
    many = [
        score.model_copy(update={"task": f"mini-mmlu_{k}"})
        for k in range(57)
        for score in doubted[:1]
    ]
    ((_, text),) = doubts([one.model_copy(update={"scores": tuple(many)})])
    assert text.startswith("acc of 57 parts of mini-mmlu: at the floor; for mini-mmlu_0 acc: ")
    ((_, text),) = doubts([one], only={("mini-mmlu", "acc")})
    assert text == f"mini-mmlu acc: {why}"


def test_changes_are_those_of_the_same_items(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    pairs = Pairs(records, folder)
    (arc, *_) = changed_items(records, records[1], pairs)
    before = pairs.items(records[0], ("mini-arc_easy", "acc", "none"))
    after = pairs.items(records[1], ("mini-arc_easy", "acc", "none"))
    assert before is not None and after is not None
    lost = int(((before.values == 1) & (after.values == 0)).sum())
    assert arc.summary.startswith(f"{lost} right to wrong")
    assert changed_items(records, records[0], pairs) == []


def test_a_method_page_says_what_the_method_is(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    method_pages.write(records, folder)
    text = (folder / "methods" / "gptq.html").read_text(encoding="utf-8")
    assert "arXiv:2210.17323" in text and "damp" in text
    assert text.count("../cells/") == 2
    unknown = record("mine", 3, 0.1)
    (path,) = method_pages.write([unknown], folder / "other")
    assert "mine" in path.read_text(encoding="utf-8")


def test_json_lines_are_the_rows_of_the_long_table(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    (path,) = json_lines.write(records, folder)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    table = long_table(records, folder)
    assert [line["cell"] for line in lines] == list(table.cell)
    assert lines[0]["value"] == pytest.approx(table.value[0])
    assert lines[-1]["value"] is None or lines[-1]["status"] == "ok"


def test_every_sign_that_a_table_writes_is_known_to_latex() -> None:
    signs: set[str] = set()
    for module in (cell_names, digits, headline, latencies, noise, pairs, tables):
        signs |= {sign for sign in inspect.getsource(module) if not sign.isascii()}
    assert {"±", "∞", "↑", "↓", pairs.TIMES} <= signs | {pairs.TIMES} <= latex.SPECIAL.keys()
    told = latex.escaped("".join(sorted(latex.SPECIAL)) + "<|>")
    assert told.isascii() and r"\textless{}\textbar{}\textgreater{}" in told


def test_latex_escapes_and_has_a_row_per_cell(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    text = latex.latex(records, folder)
    assert text.count(r" \\") == len(records) + 1
    assert r"mini-arc\_easy acc \%" in text
    assert r"\textbf{" in text
    assert latex.escaped("a_b & 50 % {x} \\") == r"a\_b \& 50 \% \{x\} \textbackslash{}"
