"""Paired differences against scipy, published examples, plain formulas, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qbench.stats.clustered import cluster_sums, quantile
from qbench.stats.difference import (
    log_ratio,
    mean_interval,
    share_difference,
)
from qbench.stats.flips import Flips, count, kind_of
from qbench.stats.power import (
    both_to_pass,
    clusters_to_pass,
    detectable,
    draws_to_pass,
    items_to_pass,
)
from qbench.stats.replicates import MeanSquares, crossed_mean, crossed_share, mean_squares
from qbench.stats.sequential import ONE_LOOK, looks
from qbench.stats.shares import Flipped, mcnemar, score_bounds, score_statistic
from qbench.stats.verdict import holm, judge

REACH = float(stats.norm.ppf(0.975))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def answers(gained: int, lost: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    base, candidate = np.zeros(items), np.zeros(items)
    candidate[:gained] = 1
    base[gained : gained + lost] = 1
    return base, candidate


# ---- right and wrong answers


def test_tango_is_that_of_the_published_example() -> None:
    """Airway hyper-responsiveness: Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33,
    2850: 1 and 7 of 21 pairs changed, and the interval is -0.517 to -0.026."""
    assert score_bounds(Flipped(1, 7, 21), REACH) == pytest.approx((-0.517, -0.026), abs=5e-4)
    found = share_difference(*answers(1, 7, 21))
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert found.value == pytest.approx(-6 / 21)


def test_the_score_at_no_difference_is_mcnemars_without_correction() -> None:
    assert score_statistic(Flipped(9, 2, 40), 0.0) ** 2 == pytest.approx((9 - 2) ** 2 / (9 + 2))


def test_mcnemar_is_the_published_one() -> None:
    """The table of R's `mcnemar.test` (Agresti 1990, page 350): 150 against 86 changed."""
    assert mcnemar(86, 150) == pytest.approx(stats.binomtest(86, 236).pvalue)
    assert mcnemar(86, 150) == pytest.approx(3.7e-5, rel=0.05)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0, "greater") == pytest.approx(0.5**5)


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from(["two-sided", "greater", "less"]))
def test_mcnemar_is_scipys_sign_test(gained: int, lost: int, alternative: str) -> None:
    if gained + lost:
        theirs = stats.binomtest(gained, gained + lost, 0.5, alternative).pvalue
        assert mcnemar(gained, lost, alternative) == pytest.approx(theirs, rel=1e-9)


@given(st.floats(1, 1e4), st.floats(0.5, 0.9999))
def test_the_quantile_is_scipys(degrees: float, level: float) -> None:
    assert quantile(level, degrees) == pytest.approx(stats.t.ppf(0.5 + level / 2, degrees))
    assert quantile(level, math.inf) == pytest.approx(stats.norm.ppf(0.5 + level / 2))


@pytest.mark.parametrize(("gained", "lost"), [(3, 1), (0, 6), (5, 5), (10, 0)])
def test_mcnemar_is_the_permutation_test_of_answers(gained: int, lost: int) -> None:
    base, candidate = answers(gained, lost, gained + lost)
    assert permutations(candidate - base) == pytest.approx(mcnemar(gained, lost))


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 40))
def test_an_interval_of_shares_holds_the_difference_and_ends_within_its_range(
    gained: int, lost: int, unchanged: int
) -> None:
    items = gained + lost + unchanged
    if not items:
        return
    found = share_difference(*answers(gained, lost, items))
    assert -1 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= 1
    assert found.low < found.high
    mirrored = share_difference(*answers(lost, gained, items))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-6)


def test_no_changed_answer_is_no_proof_of_none() -> None:
    found = share_difference(*answers(0, 0, 100))
    assert found.high == pytest.approx(REACH**2 / (REACH**2 + 100), rel=1e-3)
    assert found.low == pytest.approx(-found.high)
    draws = np.zeros((4, 100))
    assert crossed_share(draws, draws).high == pytest.approx(-math.log(0.05) / 100)
    assert crossed_share(draws, draws, level=0.99).high == pytest.approx(-math.log(0.01) / 100)


def test_answers_in_clusters_have_wider_intervals() -> None:
    """Ten copies of each answer say no more than one."""
    base, candidate = answers(12, 4, 60)
    copies = share_difference(
        np.repeat(base, 10), np.repeat(candidate, 10), sorted([*range(60)] * 10)
    )
    single = mean_interval(candidate - base)
    assert copies.clusters == 60 and copies.items == 600
    assert copies.high - copies.low == pytest.approx(single.high - single.low, rel=0.05)


# ---- means


def test_without_clusters_it_is_scipys_paired_test() -> None:
    base, candidate = normal(40), normal(40, seed=1) + 0.3
    theirs = stats.ttest_rel(candidate, base)
    found = mean_interval(candidate - base)
    assert found.p_value == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    above = stats.ttest_rel(candidate, base, alternative="greater")
    assert found.p_above(0.0) == pytest.approx(above.pvalue)
    assert found.p_above(found.low) == pytest.approx(0.025)


def test_equal_clusters_are_the_test_of_their_means() -> None:
    values, labels = normal(60) + 0.2, [k // 5 for k in range(60)]
    found = mean_interval(values, labels)
    theirs = stats.ttest_1samp(values.reshape(12, 5).mean(axis=1), 0.0)
    assert found.p_value == pytest.approx(theirs.pvalue)
    assert found.degrees == pytest.approx(11)


def test_unequal_clusters_by_the_plain_matrices() -> None:
    """CR2 and its degrees of freedom from their definitions, in matrices."""
    labels = [0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3]
    values = normal(14)
    n = len(labels)
    hat = np.full((n, n), 1 / n)
    rest = np.eye(n) - hat
    form = np.zeros((n, n))
    for label in set(labels):
        mine = np.array([one == label for one in labels])
        size = mine.sum()
        # (I - H_gg)^(-1/2) maps the vector of ones to ones / sqrt(1 - size / n).
        row = (rest[mine].sum(axis=0) / math.sqrt(1 - size / n))[None, :] / n
        form += row.T @ row
    expected = float(values @ form @ values)
    found = mean_interval(values, labels)
    assert found.stderr**2 == pytest.approx(expected)
    assert found.degrees == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form))


def test_a_single_cluster_tells_nothing_about_others() -> None:
    found = mean_interval([1.0, 2.0, 3.0], ["one", "one", "one"])
    assert (found.low, found.high, found.value) == (-math.inf, math.inf, 2.0)
    assert share_difference([0, 1], [1, 1], [7, 7]).high == pytest.approx(1.0)


def test_a_log_ratio_is_the_ratio_with_the_error_of_the_delta_method() -> None:
    base, candidate = np.exp(normal(200)), 1.3 * np.exp(normal(200, seed=1))
    found = log_ratio(base, candidate)
    assert found.value == pytest.approx(math.log(candidate.mean() / base.mean()))
    draws = np.random.default_rng(2).integers(0, 200, (4000, 200))
    spread = np.log(candidate[draws].mean(axis=1) / base[draws].mean(axis=1)).std()
    assert found.stderr == pytest.approx(spread, rel=0.06)
    with pytest.raises(ValueError, match="positive means"):
        log_ratio([0.0, 0.0], [1.0, 1.0])


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="equal lengths, and they are 2 and 3"):
        log_ratio([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="at least one finite number"):
        mean_interval([])
    with pytest.raises(ValueError, match="1 and 0"):
        share_difference([0.5], [1])
    with pytest.raises(ValueError, match="3 labels of clusters for 2 items"):
        mean_interval([1, 2], [1, 1, 2])


# ---- resampling


def test_students_test_agrees_with_permutations() -> None:
    values = normal(80) + 0.25
    assert permutations(values) == pytest.approx(mean_interval(values).p_value, abs=0.01)
    labels = [k // 4 for k in range(80)]
    sums, _ = cluster_sums(values, labels)
    assert permutations(sums) == pytest.approx(mean_interval(values, labels).p_value, abs=0.02)


def permutations(values: np.ndarray) -> float:
    """Scipy's p-value of a mean of 0, by the signs of the values: of all, or of 9,999 draws."""
    seed = np.random.default_rng(0)
    test = stats.permutation_test((values,), np.mean, permutation_type="samples", rng=seed)
    return float(test.pvalue)


# ---- draws


def test_mean_squares_are_those_of_the_two_way_table() -> None:
    table = normal(3, 8)
    found = mean_squares(table)
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    assert found.draw == pytest.approx(8 * rows.var(ddof=1))
    assert found.cluster == pytest.approx(3 * columns.var(ddof=1))
    rest = table - rows[:, None] - columns + table.mean()
    assert found.cell == pytest.approx((rest**2).sum() / 14)


def test_draws_that_agree_are_one_draw_and_those_that_differ_are_not() -> None:
    row, labels = normal(40), [k // 2 for k in range(40)]
    one = mean_interval(row, labels)
    same = crossed_mean(np.stack([row] * 4), labels)
    assert same.value == pytest.approx(one.value)
    assert same.stderr == pytest.approx(one.stderr)
    shifted = crossed_mean(row + np.array([[-0.9], [-0.3], [0.3], [0.9]]), labels)
    level = np.std([-0.9, -0.3, 0.3, 0.9], ddof=1) / 2
    assert shifted.stderr == pytest.approx(math.hypot(level, one.stderr))
    assert 3 <= shifted.degrees < 22
    assert crossed_mean(row, labels) == one


@pytest.mark.parametrize("labels", [[0] * 11 + [1, 1, 2, 2, 3], [k // 2 for k in range(20)]])
def test_draws_that_agree_have_the_leverage_of_one(labels: list[int]) -> None:
    """A long article counts as much for four draws of one model as for that model."""
    row = normal(len(labels))
    one = mean_interval(row, labels)
    same = crossed_mean(np.stack([row] * 4), labels)
    assert same.stderr == pytest.approx(one.stderr)
    assert mean_squares(np.stack([row] * 4), labels).cluster_degrees == pytest.approx(one.degrees)
    shifted = mean_squares(row + np.array([[-0.9], [-0.3], [0.3], [0.9]]), labels)
    assert shifted.cell == pytest.approx(0), (
        "that a draw is worse on all items is no noise of cells"
    )


def test_several_draws_cover_in_unequal_clusters() -> None:
    generator = np.random.default_rng(8)
    labels = [0] * 11 + [1, 1, 2, 2, 3]
    held = 0
    for _ in range(600):
        articles = 0.5 * generator.standard_normal(4)[labels]
        found = crossed_mean(articles + 0.7 * generator.standard_normal((4, 16)), labels)
        held += found.low <= 0 <= found.high
    assert held >= 0.93 * 600


def test_answers_of_few_draws_end_within_their_range() -> None:
    base, candidate = np.zeros((2, 5)), np.array([[1.0] * 5, [0.0] * 5])
    both = crossed_share(base, candidate)
    assert (both.value, both.low, both.high) == (0.5, -1.0, 1.0)


def test_one_draw_of_answers_is_tangos() -> None:
    base, candidate = answers(3, 1, 30)
    assert crossed_share(base, candidate) == share_difference(base, candidate)
    found = crossed_share(np.stack([base] * 3), np.stack([candidate] * 3))
    assert found.value == pytest.approx(2 / 30) and found.draws == 3


# ---- several tests, verdicts, flips


def test_holm_is_the_published_example() -> None:
    """Of R's `p.adjust`: 0.01, 0.02, 0.03, 0.04, 0.05 become 0.05, 0.08, 0.09, 0.09, 0.09."""
    p_values = [0.03, 0.01, 0.05, 0.02, 0.04]
    assert holm(p_values) == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_verdicts_go_by_the_ends_of_the_interval() -> None:
    def harm(value: float, stderr: float) -> object:
        generator = np.random.default_rng(0)
        row = generator.standard_normal(400)
        row = (row - row.mean()) / row.std(ddof=1) * stderr * 20 + value
        return mean_interval(row)

    words = {}
    for name, value, stderr in (
        ("worse", 0.05, 0.01),
        ("same", 0.005, 0.005),
        ("better", -0.05, 0.01),
        ("undecided", 0.0, 0.05),
        ("undecided above", 0.03, 0.01),
    ):
        (judged,) = judge([harm(value, stderr)], [0.02])
        words[name] = judged.word
    assert words == {
        "worse": "worse",
        "same": "same",
        "better": "better",
        "undecided": "undecided",
        "undecided above": "undecided",
    }
    one, *_ = judge([harm(0.042, 0.01)], [0.02])
    many = judge([harm(0.042, 0.01), *[harm(0.0, 0.001)] * 9], [0.02] * 10)
    assert one.word == "worse" and many[0].word == "undecided"
    assert many[0].p_worse == pytest.approx(min(1.0, 10 * one.p_worse))
    assert not many[0].passes and many[1].passes


# ---- looks before all draws are made


def test_the_looks_share_the_error_and_spend_little_of_it_early() -> None:
    for draws in range(3, 17):
        schedule = looks(draws)
        assert [look.last for look in schedule] == [False] * (len(schedule) - 1) + [True]
        assert schedule[-1].draws == draws and schedule[0].draws >= 2
        shares = [look.share for look in schedule]
        assert sum(shares) == pytest.approx(1) and shares == sorted(shares)
        spent = 0.0
        for look in schedule:  # Kim and DeMets: alpha t^5
            spent += look.share
            assert spent == pytest.approx((look.draws / draws) ** 5)
            assert look.level == pytest.approx(1 - 0.05 * look.share)
    assert [look.draws for look in looks(4)] == [2, 3, 4]
    assert [look.draws for look in looks(8)] == [4, 6, 8]
    for draws in (1, 2):
        (look,) = looks(draws)
        assert (look.draws, look.share, look.last) == (draws, 1.0, True)
    assert ONE_LOOK.level == pytest.approx(0.95)


def test_a_look_claims_what_its_own_interval_shows() -> None:
    """Words at a share of the error are those of intervals at that level, as at one look."""
    table = np.array([[0.030], [0.034], [0.032]]) + 0.01 * normal(3, 40)
    for look in looks(4)[:2]:
        harm = crossed_mean(table[: look.draws], level=look.level, cautious=True)
        assert harm.degrees == look.draws - 1
        assert harm.high - harm.value == pytest.approx(
            stats.t.ppf(1 - 0.025 * look.share, look.draws - 1) * harm.stderr
        )
        for margin in (harm.low - 1e-6, harm.low + 1e-6):
            (judged,) = judge([harm], [margin], look.share)
            assert (judged.word == "worse") == (margin < harm.low)
            assert (judged.p_worse <= 0.05) == (margin < harm.low)
        (judged,) = judge([harm], [harm.high + 1e-6], look.share)
        assert judged.word == "same"


def test_flips_are_counted_by_kind() -> None:
    assert kind_of((True, False), (1, 2)) == "right to wrong"
    assert kind_of((False, True), (2, 1)) == "wrong to right"
    assert kind_of((False, False), (2, 3)) == "wrong to another wrong"
    assert kind_of((False, False), (2, 2)) is None and kind_of((True, True), (1, 1)) is None
    kinds = [kind_of((True, False), (1, 2)), None, kind_of((False, False), (2, 3)), None]
    assert count(kinds) == Flips(4, lost=1, gained=0, moved=1)
    assert count(kinds).share == 0.5


# ---- power


def test_a_detectable_difference_is_found_as_often_as_is_said() -> None:
    reach = stats.t.ppf(0.975, 50)
    found = stats.nct.sf(reach, 50, detectable(1.0, 50, alpha=0.05))
    assert found == pytest.approx(0.8, abs=0.01)


def test_more_items_and_draws_are_asked_until_the_margin_is_seen() -> None:
    assert items_to_pass(0.01, 100, 0.02) == pytest.approx(100 * (2.8016 * 0.5) ** 2, abs=1)
    assert items_to_pass(0.001, 100, 0.02) == 100
    table = 0.02 * normal(4, 30) + 0.03 * normal(4, 1, seed=1)
    squares = mean_squares(table)
    more = draws_to_pass(squares, 0.03)
    assert more is not None and more > 4
    assert draws_to_pass(squares, 1.0) == 4
    of_items = mean_squares(np.stack([normal(30)] * 4))
    assert draws_to_pass(of_items, 0.1) is None
    few = items_to_pass(0.01, 100, 0.02, degrees=3)
    for items, shown in ((few, True), (few - 1, False)):
        found = detectable(0.01 * math.sqrt(100 / items), 3 * items / 100)
        assert (found <= 0.02) == shown


def expected_squares(draws: int, clusters: int, sd: tuple[float, float, float]) -> MeanSquares:
    """Of effects of draws, clusters and cells with these standard deviations."""
    draw, cluster, cell = (one * one for one in sd)
    ends = (clusters * draw + cell, draws * cluster + cell, cell)
    return MeanSquares(*ends, draws, clusters, clusters - 1.0)


@pytest.mark.parametrize("sd", [(0.004, 0.1, 0.05), (0.015, 0.1, 0.05)])
def test_what_is_asked_of_items_and_draws_is_enough(sd: tuple[float, float, float]) -> None:
    """No number of items makes the spread of draws less: then more draws are asked with them."""
    squares = expected_squares(4, 40, sd)
    draws, clusters = 4, clusters_to_pass(squares, 0.02, 4)
    if sd[0] > 0.01:
        assert clusters is None and draws_to_pass(squares, 0.02) is None
        draws, clusters = both_to_pass(squares, 0.02)
        assert draws > 4 and clusters_to_pass(squares, 0.02, draws) == clusters
    generator = np.random.default_rng(9)
    shown = 0
    for _ in range(150):
        effects = [
            one * generator.standard_normal(shape)
            for one, shape in zip(sd, ((draws, 1), (1, clusters), (draws, clusters)), strict=True)
        ]
        shown += crossed_mean(sum(effects)).high < 0.02
    assert shown >= 0.73 * 150  # 80 % less two Monte Carlo errors


# ---- simulation; benchmarks/coverage.py has all cases


@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_cover_and_nulls_do_not_alarm(clustered: bool) -> None:
    generator = np.random.default_rng(5)
    labels = [k // 4 for k in range(80)] if clustered else None
    held = 0
    for _ in range(1000):
        values = generator.standard_t(5, 80)
        if clustered:
            values = values + np.repeat(generator.standard_normal(20), 4)
        found = mean_interval(values, labels)
        held += found.low <= 0 <= found.high
    assert 935 <= held <= 970


def test_draws_are_in_the_interval_and_items_alone_alarm() -> None:
    generator = np.random.default_rng(6)
    crossed = alone = 0
    for _ in range(600):
        table = 0.3 * generator.standard_normal((4, 1)) + generator.standard_normal((4, 48))
        found = crossed_mean(table)
        crossed += not found.low <= 0 <= found.high
        first = mean_interval(table[0])
        alone += not first.low <= 0 <= first.high
    assert crossed <= 0.07 * 600
    assert alone >= 0.2 * 600


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_stopping_early_does_not_alarm_more_often(spread: float) -> None:
    """A margin of 0 and no difference: to stop before the end is to be wrong."""
    generator = np.random.default_rng(7)
    wrong = naive = 0
    for _ in range(400):
        table = spread * generator.standard_normal((4, 1)) + generator.standard_normal((4, 48))
        words = []
        for look in looks(4):
            harm = crossed_mean(table[: look.draws], None, look.level, not look.last)
            words.append(judge([harm], [0.0], look.share)[0].word)
        wrong += words != ["undecided"] * 3
        naive += any(crossed_mean(table[:draws]).p_value <= 0.05 for draws in (2, 3, 4))
    assert wrong <= 0.05 * 400
    if spread:
        assert naive >= 0.08 * 400  # what the looks would cost without their shares
