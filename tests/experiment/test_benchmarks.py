"""Which tasks have a published data set, for the cards of a run's models."""

from __future__ import annotations

from qbench.checkpoint.card_metadata import Benchmark
from qbench.experiment.benchmarks import benchmarks
from qbench.tasks.registry import get_task


def test_questions_of_published_data_sets_and_no_stand_ins():
    arc = get_task("arc_easy")
    tasks = {"arc_easy": arc, "mini-gsm8k": get_task("gsm8k"), "wikitext": get_task("wikitext")}
    published = benchmarks(tasks)
    assert published.keys() == {"arc_easy"}
    headline = next(score for score in arc.scores if score.headline)
    assert published["arc_easy"] == Benchmark(
        "allenai/ai2_arc", "ARC-Easy", "test", headline.metric, headline.filter, arc.cost.items
    )
