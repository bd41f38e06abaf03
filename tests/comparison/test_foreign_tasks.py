"""What a task of another package gives: its own declaration says what it is, and not its names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compared_cells import cell
from qbench.comparison.endpoints import MARGINS, endpoints
from qbench.comparison.pairs import Contrast, Pairs
from qbench.errors import ConfigError
from qbench.records import Record, Score, TaskSpec
from qbench.reports.headline import headlines
from qbench.reports.numbers import score_text
from qbench.reports.registry import write_reports
from qbench.tasks import registry
from qbench.tasks.declaration import Cost, Declaration, DeclaredScore
from qbench.tasks.harness import HarnessTask
from qbench.tasks.judging import check_scores
from qbench.tasks.registry import get_task, nature_of, unit_of

PLAIN = [0.1, 0.3, 0.2, 0.4]
QUANTIZED = [0.05, 0.3, 0.1, 0.35]
FOREIGN = "foreign"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """No test leaves a task behind."""
    yield
    registry.declared_score.cache_clear()


def declare(monkeypatch: pytest.MonkeyPatch, *scores: DeclaredScore) -> None:
    """A task of another package, by name."""
    task = Declaration(
        name=FOREIGN,
        about="ours",
        kind="text",
        table="wikitext",
        cost=Cost(items=4, tokens=4),
        scores=scores,
    )
    monkeypatch.setitem(registry._loaded, Path(FOREIGN), task)  # type: ignore[arg-type]
    registry.declared_score.cache_clear()


def judged(
    folder: Path, bits: int | None, values: Sequence[float], metric: str, higher: bool, **row: Any
) -> Record:
    """A cell with one score of the task, and its rows."""
    spec = TaskSpec(name=FOREIGN, data="ours", sha256="e" * 64)
    made = cell("rtn" if bits else "none", bits, tasks=(spec,))
    path = Path("samples") / f"{made.id}.jsonl"
    rows = []
    for index, value in enumerate(values):
        known = {"filter": "none", "doc_id": index, "doc_hash": f"hash {index}"}
        rows.append(json.dumps({**known, metric: value, **row}))
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text("\n".join(rows) + "\n")
    score = Score(
        task=FOREIGN,
        metric=metric,
        value=math.fsum(values) / len(values),
        stderr=0.1,
        n=len(values),
        higher_is_better=higher,
        samples=str(path),
    )
    return made.model_copy(update={"scores": (score,)})


def difference(folder: Path, metric: str, higher: bool, scale: float = 1.0) -> Contrast:
    both = [
        judged(folder, bits, [scale * value for value in values], metric, higher)
        for bits, values in ((None, PLAIN), (3, QUANTIZED))
    ]
    found = Pairs(both, folder).from_unquantized(both[1], (FOREIGN, metric, "none"))
    assert found is not None
    return found


@pytest.mark.parametrize("metric", ["top1_acc", "kl_calibration", "kl_mean", "log_perplexity"])
def test_the_beginning_of_a_metrics_name_says_nothing(
    metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, DeclaredScore(metric=metric, unit="%", better="higher", headline=True))
    found = difference(tmp_path, metric, True)
    assert found.kind == "points"
    assert found.figures[0] == pytest.approx(-5.0)


def test_what_is_relative_is_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate from samples may be negative, and its interval still holds it."""
    relative = DeclaredScore(metric="apart", unit="nats", better="lower", nature="relative")
    declare(monkeypatch, relative)
    for scale in (1.0, -1.0):
        found = difference(tmp_path, "apart", False, scale).difference
        assert found.value == pytest.approx(scale * 0.2)
        assert found.low <= found.value <= found.high


def test_a_unit_is_that_of_the_tasks_own_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unit_of("arc_easy", "acc") == unit_of("mini-mmlu_stem", "acc") == "%"
    assert nature_of("mini-text", "perplexity") == "perplexity"
    assert unit_of(FOREIGN, "acc") == ""
    declare(monkeypatch, DeclaredScore(metric="acc", better="higher"))
    assert unit_of(FOREIGN, "acc") == ""
    score = Score(task=FOREIGN, metric="acc", value=41.5, stderr=None, n=4, higher_is_better=True)
    assert score_text(score) == "41.50"


def test_a_margin_is_for_what_it_was_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [judged(tmp_path, bits, PLAIN, "acc", True) for bits in (None, 3)]
    for unit, count in (("%", 1), ("", 0)):
        declare(monkeypatch, DeclaredScore(metric="acc", unit=unit, better="higher"))
        assert len(endpoints(both[0], both[1], MARGINS, None)) == count


def test_reports_are_written_where_a_tasks_package_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qbench.reports.pictures.write", lambda records, folder: [])
    for number, metric in enumerate(("top1_acc", "kl_mean", "perplexity", "nll", "acc")):
        folder = tmp_path / str(number)
        both = [judged(folder, None, PLAIN, metric, True)]
        both.append(judged(folder, 3, [-value for value in QUANTIZED], metric, True))
        assert write_reports(both, folder)
        assert [headline.title for headline in headlines(both)] == [f"{FOREIGN} {metric}"]


def test_a_perplexity_of_lm_eval_is_declared_as_one() -> None:
    task = get_task("lambada_openai")
    assert isinstance(task, HarnessTask)
    stock = SimpleNamespace(higher_is_better=lambda: {"acc": True, "perplexity": False})
    parts: list[Any] = [SimpleNamespace(task=stock, subject=None)]
    check_scores(task, parts)
    scores = tuple(score.model_copy(update={"nature": "plain"}) for score in task.scores)
    with pytest.raises(ConfigError, match="write nature: perplexity"):
        check_scores(task.model_copy(update={"scores": scores}), parts)


def two_ways(folder: Path, **row: Any) -> Contrast | None:
    """The same items in two orders, the candidate's values a tenth above the base's."""
    both = [
        judged(folder, None, PLAIN, "loss", False, **row),
        judged(folder, 3, [value + 0.1 for value in PLAIN], "loss", False, **row),
    ]
    path = folder / str(both[1].scores[0].samples)
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    return Pairs(both, folder).from_unquantized(both[1], (FOREIGN, "loss", "none"))


def test_rows_are_paired_by_their_items_and_never_by_their_order(tmp_path: Path) -> None:
    for number, row in enumerate(({}, {"doc_hash": None})):  # by the hash, and by doc_id
        found = two_ways(tmp_path / str(number), **row)
        assert found is not None
        assert found.difference.low == pytest.approx(0.1)
    assert two_ways(tmp_path / "none", doc_hash=None, doc_id=None) is None
    assert two_ways(tmp_path / "alike", doc_hash=None, doc_id=7) is None
