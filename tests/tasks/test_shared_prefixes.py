"""Passes over shared beginnings: nothing is lost, nothing is seen that should not be, and why."""

from __future__ import annotations

import numpy as np
import pytest

from qbench.tasks.shared_prefixes import passes


def seen_by(step, past, token: int) -> list[int]:
    """The tokens that one token of a pass sees, itself last; `past`: what the cache holds."""
    own = step.visible()[token]
    return [*np.array(past)[: step.past][own[: step.past]], *step.tokens[own[step.past :]]]


def check(sequences, scored, budget, shortest_stem=32) -> int:
    """Hold every scored token against its sequence; returns how many tokens were computed."""
    cache: list[int] = []
    answered = {}
    computed = 0
    for step in passes(sequences, scored, budget, shortest_stem):
        assert step.past <= len(cache), "a pass goes on from what the cache holds"
        cache = cache[: step.past]
        computed += len(step.tokens)
        assert len(step.tokens) == len(step.depth) == len(step.end) > 0
        for index, places in step.scored.items():
            assert index not in answered
            answered[index] = [seen_by(step, cache, place) for place in places]
            depth = [int(step.depth[place]) for place in places]
            assert depth == [len(seen) - 1 for seen in answered[index]], "position is depth"
        if not step.scored:
            assert step.is_chain
            cache = [*cache, *step.tokens.tolist()]
    assert sorted(answered) == list(range(len(sequences)))
    for index, seen in answered.items():
        sequence, count = list(sequences[index]), scored[index]
        whole = range(len(sequence) - count + 1, len(sequence) + 1)
        assert seen == [sequence[:length] for length in whole]
    return computed


@pytest.mark.parametrize("budget", [1, 7, 40, 10_000])
@pytest.mark.parametrize("shortest_stem", [1, 5, 32])
def test_every_scored_token_sees_its_own_sequence_and_no_other(budget, shortest_stem):
    rng = np.random.default_rng(0)
    for _ in range(30):
        subjects = [rng.integers(0, 3, rng.integers(1, 40)).tolist() for _ in range(3)]
        sequences, scored = [], []
        for _ in range(rng.integers(1, 25)):
            prompt = [*subjects[rng.integers(3)], *rng.integers(0, 2, rng.integers(0, 9)).tolist()]
            answer = rng.integers(0, 2, rng.integers(0, 6)).tolist()
            sequences.append([*prompt, *answer])
            scored.append(int(rng.integers(1, len(sequences[-1]) + 1)))
        check(sequences, scored, budget, shortest_stem)


def test_choices_share_their_question():
    question = list(range(100, 120))
    sequences = [[*question, 1], [*question, 2, 3], question, question]
    (step,) = passes(sequences, [2, 3, 1, 1], budget=64)
    assert step.tokens.tolist() == [*question, 1, 2, 3]
    assert step.depth.tolist() == [*range(20), 20, 20, 21]
    assert step.end.tolist() == [*[23] * 20, 21, 23, 23]
    assert step.scored[2].tolist() == step.scored[3].tolist() == [19]
    assert step.scored[1].tolist() == [19, 21, 22]


def test_what_a_subject_shares_is_computed_once():
    examples = list(range(500))
    sequences = [
        [*examples, *range(q, q + 60), 7, c] for q in range(600, 5600, 100) for c in (1, 2)
    ]
    computed = check(sequences, [1] * len(sequences), budget=300)
    assert computed == 500 + 50 * 63


def test_a_short_beginning_is_computed_again_rather_than_alone():
    sequences = [[1, 2, *range(q, q + 60)] for q in range(100, 1000, 100)]
    found = list(passes(sequences, [1] * 9, budget=130))
    assert all(step.scored and step.past == 0 for step in found)


def test_one_text_alone_is_a_chain():
    (step,) = passes([[5, 6, 7]], [3], budget=2)
    assert step.is_chain and step.scored[0].tolist() == [0, 1, 2]
    assert list(passes([], [], budget=2)) == []
