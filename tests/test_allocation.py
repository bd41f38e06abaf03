"""A budget of bits between layers, against every other way to spend it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench import allocation
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


def spent(costs, widths):
    return sum(costs[name][bits] for name, bits in widths.items())


@settings(max_examples=300, deadline=None)
@given(LAYERS, st.floats(2, 4))
def test_no_other_way_within_the_budget_costs_less(layers, budget):
    sizes, costs = problem(layers)
    widths = allocate(sizes, costs, budget)
    assert widths.keys() == sizes.keys() and average(sizes, widths) <= budget * (1 + 1e-9)
    assert spent(costs, widths) == pytest.approx(cheapest(sizes, costs, budget), abs=1e-9)
    for name, bits in widths.items():
        narrower = [costs[name][width] for width in WIDTHS if width < bits]
        assert all(cost > costs[name][bits] for cost in narrower), "bits that gain nothing"


@settings(max_examples=300, deadline=None)
@given(LAYERS, st.floats(2, 4))
def test_with_too_many_layers_no_uniform_width_is_better(layers, budget):
    sizes, costs = problem(layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "MOST", 0)
        widths = allocate(sizes, costs, budget)
    assert widths.keys() == sizes.keys() and average(sizes, widths) <= budget * (1 + 1e-9)
    cost = spent(costs, widths)
    for width in WIDTHS:
        if width <= budget:
            assert cost <= spent(costs, dict.fromkeys(sizes, width)) + 1e-9
    # What one layer's last step would have gained is all that can be lost.
    loss = max(max(own.values()) - min(own.values()) for own in costs.values())
    assert cost <= cheapest(sizes, costs, budget) + loss + 1e-9


def test_a_large_layer_whose_bit_gains_most_does_not_take_those_of_all_others():
    sizes = {"large": 5, "b": 3, "c": 3}  # one bit of `large`, or one of both others
    costs = {"large": {2: 10.0, 3: 5.0}, "b": {2: 2.9, 3: 0.0}, "c": {2: 2.9, 3: 0.0}}
    assert allocate(sizes, costs, 2 + 6 / 11) == {"large": 2, "b": 3, "c": 3}


@pytest.mark.parametrize("most", [None, 0])
def test_layers_as_large_as_those_of_models_take_seconds(monkeypatch, most):
    if most is not None:
        monkeypatch.setattr(allocation, "MOST", most)
    shapes = {"q": 8, "k": 1, "v": 1, "o": 8, "gate": 28, "up": 28, "down": 28}
    sizes, costs = {}, {}
    for block in range(80):
        for kind, size in shapes.items():
            name = f"{block}.{kind}"
            sizes[name] = size << 23
            costs[name] = {bits: (1 + block % 7) * size * 4.0**-bits for bits in (2, 3, 4, 5)}
    widths = allocate(sizes, costs, 3.3)
    assert 3.299 < average(sizes, widths) <= 3.3 * (1 + 1e-9)


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
