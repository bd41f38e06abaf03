"""Sample files for records that no run has made: items whose means are the records' scores."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qbench.records import Record, Score

ITEMS = 100


def with_items(record: Record, folder: Path, clusters: Sequence[str] | None = None) -> Record:
    """The record with a file of ITEMS rows for each of its tasks, below the folder.

    The items of all records share most of their spread, as those of models do. Scores of the same
    cell have the same rows every time. clusters: of the items, each its own without.
    """
    scores = []
    for task in dict.fromkeys(score.task for score in record.scores):
        mine = [score for score in record.scores if score.task == task]
        path = Path("samples") / record.id / f"{task}.jsonl"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        rows = []
        for score in mine:
            exact = _values(score, record.id)
            scores.append(_rounded(score, exact, str(path)))
            for index, value in enumerate(exact):
                row = {"doc_id": index, "filter": score.filter, "doc_hash": f"{task} {index}"}
                column = "nll" if score.metric == "perplexity" else score.metric
                if clusters is not None:
                    row["cluster"] = clusters[index]
                rows.append(row | {column: value})
        (folder / path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return record.model_copy(update={"scores": tuple(scores)})


def _values(score: Score, seed: str) -> list[float]:
    """Items whose mean is the score, or for answers as near as counts can be."""
    common = np.random.default_rng(sum(map(ord, score.task + score.metric)))
    own = np.random.default_rng(int(seed, 16))
    if score.metric in ("acc", "exact_match"):
        difficulty = common.random(ITEMS) + 0.05 * own.random(ITEMS)
        right = round(score.value * ITEMS)
        order = np.argsort(difficulty)
        values = np.zeros(ITEMS)
        values[order[:right]] = 1.0
        return [float(value) for value in values]
    mean = math.log(score.value) if score.metric == "perplexity" else score.value
    spread = common.standard_normal(ITEMS) * 0.1 + own.standard_normal(ITEMS) * 0.01
    return [float(value) for value in mean + spread - spread.mean()]


def _rounded(score: Score, values: Sequence[float], path: str) -> Score:
    """The score with its file, and the value that the items have."""
    mean = float(np.mean(values))
    value = math.exp(mean) if score.metric == "perplexity" else mean
    if abs(value - score.value) < 1e-9 * max(1.0, abs(score.value)):
        value = score.value
    return score.model_copy(update={"samples": path, "value": value, "n": len(values)})
