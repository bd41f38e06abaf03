"""Calibration text that holds evaluated text."""

from __future__ import annotations

from qbench.experiment.overlap import WORDS, overlaps
from qbench.tasks.mini_source import MiniSource
from qbench.tasks.registry import get_task

SENTENCE = "One two three, four; five six seven eight nine ten eleven twelve thirteen fourteen."


class _Source(MiniSource):
    """The embedded data with another text to calibrate on."""

    def __init__(self, calibration):
        object.__setattr__(self, "calibration", calibration)

    def text(self, table_name):
        if table_name == "calibration":
            return self.calibration
        return ["short", f"before it {SENTENCE.upper()} and after", "of other words " * 9]


def found(calibration, *names):
    return overlaps(_Source(calibration), [get_task(name) for name in names])


def test_words_in_a_row_are_found_again_in_other_signs_and_letters():
    facts = found([f"x {SENTENCE.replace(',', ' ,')} y"], "wikitext", "divergence")
    assert facts["wikitext"] == facts["divergence"]
    assert (facts["wikitext"]["items"], facts["wikitext"]["of"]) == (1, 2), (
        "short texts do not count"
    )
    assert (
        facts["wikitext"]["example"].split()
        == SENTENCE.lower().replace(",", "").replace(";", "").rstrip(".").split()[:WORDS]
    )


def test_twelve_words_are_not_enough():
    words = " ".join(SENTENCE.split()[: WORDS - 1])
    assert found([words, f"{words} and others"], "wikitext")["wikitext"]["items"] == 0


def test_questions_are_searched_with_their_choices():
    rows = MiniSource().rows("gsm8k", "test")
    text = rows[3]["question"]
    facts = found([text], "gsm8k")["gsm8k"]
    assert facts["items"] >= 1 and facts["of"] == len(rows)
    assert found(["nothing of it"], "arc_easy")["arc_easy"]["items"] == 0
