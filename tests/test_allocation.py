"""A budget of bits between layers, against every other way to spend it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.allocation import allocate, average, hull

WIDTHS = (2, 3, 4)
LAYERS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.floats(0, 100), min_size=3, max_size=3)),
    min_size=1,
    max_size=4,
)


def problem(layers):
    sizes = {f"layer{i}": size for i, (size, _) in enumerate(layers)}
    costs = {f"layer{i}": dict(zip(WIDTHS, own, strict=True)) for i, (_, own) in enumerate(layers)}
    return sizes, costs


def cheapest(sizes, costs, budget):
    """The least cost of all ways that keep to the budget."""
    least = float("inf")
    for choice in itertools.product(WIDTHS, repeat=len(sizes)):
        widths = dict(zip(sizes, choice, strict=True))
        if average(sizes, widths) <= budget + 1e-9:
            least = min(least, sum(costs[name][bits] for name, bits in widths.items()))
    return least


@settings(max_examples=200, deadline=None)
@given(LAYERS, st.floats(2, 4))
def test_the_budget_is_kept_and_no_layer_takes_bits_that_gain_nothing(layers, budget):
    sizes, costs = problem(layers)
    widths = allocate(sizes, costs, budget)
    assert widths.keys() == sizes.keys() and average(sizes, widths) <= budget * (1 + 1e-9)
    cost = sum(costs[name][bits] for name, bits in widths.items())
    assert cost <= sum(own[2] for own in costs.values())
    best = cheapest(sizes, costs, budget)
    # What one layer's last step would have gained is all that can be lost.
    loss = max(max(own.values()) - min(own.values()) for own in costs.values())
    assert cost <= best + loss + 1e-9


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=5), st.data())
def test_it_is_the_best_way_where_layers_are_of_one_size_and_gains_fall(gains, data):
    layers = []
    for first, second in gains:
        one, two = max(first, second), min(first, second)
        layers.append((4, [one + two, two, 0.0]))
    sizes, costs = problem(layers)
    steps = data.draw(st.integers(0, 2 * len(layers)))
    budget = 2 + steps / len(layers)
    widths = allocate(sizes, costs, budget)
    cost = sum(costs[name][bits] for name, bits in widths.items())
    assert cost == pytest.approx(cheapest(sizes, costs, budget), abs=1e-9)


def test_a_step_of_two_bits_is_one_step_where_the_first_alone_gains_little():
    assert [step[1:3] for step in hull("a", 1, {2: 10.0, 3: 9.9, 4: 0.0})] == [(2, 4)]
    assert [step[1:3] for step in hull("a", 1, {2: 10.0, 3: 4.0, 4: 1.0})] == [(2, 3), (3, 4)]
    assert hull("a", 1, {2: 1.0, 3: 2.0}) == []


def test_where_layers_are_alike_a_whole_budget_is_uniform():
    sizes = {name: 10 for name in "abc"}
    costs = {name: {2: 4.0, 3: 1.0, 4: 0.25} for name in sizes}
    assert allocate(sizes, costs, 3.0) == dict.fromkeys(sizes, 3)
    assert allocate({"a": 2}, {"a": {2: 10.0, 3: 9.9, 4: 0.0}}, 3.0) == {"a": 3}, "what fits"
    assert allocate(sizes, costs, 3.4) == {"a": 4, "b": 3, "c": 3}, "the first of equals"
