"""Do the intervals of `qbench.stats` cover, and do its tests alarm, as often as they say?

    python -P benchmarks/coverage.py [--runs 2000] [--json FILE]

Every case draws comparisons whose true difference is known. Reported: the share of 95 % intervals
that hold it (Monte Carlo error 0.5 points at 2,000 runs), the share of null comparisons that alarm,
and the power at the smallest difference that was promised to be found with 80 %; for the gate, how
often it passes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from scipy import special, stats

from qbench.stats.difference import Difference, mean_interval, share_difference
from qbench.stats.power import ALPHA, POWER, detectable
from qbench.stats.replicates import crossed_mean
from qbench.stats.sequential import Look, looks
from qbench.stats.shares import Flipped, mcnemar, score_statistic
from qbench.stats.verdict import holm, judge

RUNS = 2000
ITEMS = (50, 200, 1000)
DISCORDANCE = (0.02, 0.05, 0.10, 0.20)
CLUSTER = 5  # items
Floats = np.ndarray


@dataclass(frozen=True)
class Case:
    """What was drawn, and in percent how often the interval held the truth, or the test alarmed.

    made: of the draws, how many were made on average before the verdict was in.
    """

    name: str
    items: int
    clusters: int
    draws: int
    discordance: float | None
    cover: float | None = None
    alarms: float | None = None
    power: float | None = None
    promised: float | None = None
    made: float | None = None


def holds(estimate: Difference, truth: float) -> bool:
    """Whether the 95 % interval holds the true difference."""
    return estimate.low <= truth <= estimate.high


def exact_shares() -> Iterator[Case]:
    """Tango's interval on independent items: summed over all counts, not drawn."""
    for items in ITEMS:
        for discordance in DISCORDANCE:
            covered = [
                exact_cover(items, discordance, share * discordance)
                for share in (0.0, 0.25, 0.5, 0.75)
            ]
            yield Case(
                "right or wrong, exact",
                items,
                items,
                1,
                discordance,
                cover=100 * float(np.mean(covered)),
                alarms=100 * (1 - covered[0]),
            )


def exact_cover(items: int, discordance: float, difference: float) -> float:
    """Probability that Tango's 95 % interval holds the difference."""
    reach = float(stats.norm.ppf(0.975))
    gains = (discordance + difference) / 2 / discordance
    total = 0.0
    for changed in range(items + 1):
        weight = float(stats.binom.pmf(changed, items, discordance))
        if weight < 1e-10:
            continue
        chances = stats.binom.pmf(np.arange(changed + 1), changed, gains)
        for gained, chance in enumerate(chances):
            flipped = Flipped(gained, changed - gained, items)
            if chance > 1e-10 and abs(score_statistic(flipped, difference)) <= reach:
                total += weight * float(chance)
    return total


def answers(
    generator: Generator, items: int, discordance: float, lean: float, clustered: bool
) -> tuple[Floats, Floats, list[int] | None]:
    """Base, candidate and clusters. lean: the share of changes that are gains, on average.

    In clusters both how many answers change and which way depends on the cluster.
    """
    groups = items // CLUSTER if clustered else items
    size = items // groups
    change = np.full(groups, discordance)
    gain = np.full(groups, lean)
    if clustered:
        change = generator.beta(4 * discordance, 4 * (1 - discordance), groups)
        gain = generator.beta(4 * lean, 4 * (1 - lean), groups)
    changed = generator.random((groups, size)) < change[:, None]
    gained = generator.random((groups, size)) < gain[:, None]
    right = generator.random((groups, size)) < 0.5
    base = np.where(changed, ~gained, right).astype(float).ravel()
    candidate = np.where(changed, gained, right).astype(float).ravel()
    labels = [k // size for k in range(items)] if clustered else None
    return base, candidate, labels


def shares_in_clusters(runs: int, seed: int) -> Iterator[Case]:
    """Right and wrong answers in clusters of five."""
    generator = np.random.default_rng(seed)
    for items in ITEMS:
        for discordance in DISCORDANCE:
            covered = []
            for lean in (0.5, 0.7):
                truth = discordance * (2 * lean - 1)
                for _ in range(runs // 2):
                    drawn = answers(generator, items, discordance, lean, clustered=True)
                    covered.append((lean, holds(share_difference(*drawn), truth)))
            nulls = [held for lean, held in covered if lean == 0.5]
            yield Case(
                "right or wrong, in clusters",
                items,
                items // CLUSTER,
                1,
                discordance,
                cover=100 * float(np.mean([held for _, held in covered])),
                alarms=100 * (1 - float(np.mean(nulls))),
            )


def means(runs: int, seed: int) -> Iterator[Case]:
    """Heavy-tailed differences (Student's t of 4 degrees), alone and in unequal clusters."""
    generator = np.random.default_rng(seed)
    for items in ITEMS:
        for clustered in (False, True):
            labels = unequal(items) if clustered else None
            groups = items if labels is None else len(set(labels))
            covered = []
            for _ in range(runs):
                values = generator.standard_t(4, items)
                if labels is not None:
                    values = values + 0.7 * generator.standard_t(4, groups)[labels]
                covered.append(holds(mean_interval(values, labels), 0.0))
            cover = 100 * float(np.mean(covered))
            name = "means, in unequal clusters" if clustered else "means"
            yield Case(name, items, groups, 1, None, cover=cover, alarms=100 - cover)


def unequal(items: int) -> list[int]:
    """Labels of clusters of 1, 2, 3, 4 and 5 items, and again."""
    labels: list[int] = []
    while len(labels) < items:
        labels += [len(set(labels))] * (len(set(labels)) % 5 + 1)
    return labels[:items]


def crossed(runs: int, seed: int) -> Iterator[Case]:
    """Draws of the quantization, articles and windows, the draws' spread from none to large."""
    yield from _crossed(runs, seed, [k // 2 for k in range(48)], "windows of articles")


def crossed_unequal(runs: int, seed: int) -> Iterator[Case]:
    """The same where the first of the articles has most of the windows, as in a short text."""
    for sizes in ((11, 2, 2, 1), (19, 14, 11, 6, 6, 5, 2, 1), (30, *[1] * 30)):
        labels = np.repeat(np.arange(len(sizes)), sizes).tolist()
        name = f"articles of {sizes[0]} to {sizes[-1]} windows"
        yield from _crossed(runs, seed, labels, name)


def _crossed(runs: int, seed: int, labels: list[int], what: str) -> Iterator[Case]:
    generator = np.random.default_rng(seed)
    for draws in (1, 2, 4, 8):
        for spread, name in ((0.0, "no"), (0.2, "some"), (0.5, "much")):
            covered = []
            for _ in range(runs):
                base, candidate = (model_losses(generator, draws, labels, spread) for _ in range(2))
                covered.append(holds(crossed_mean(candidate - base, labels), 0.0))
            cover = 100 * float(np.mean(covered))
            yield Case(
                f"{what}, {name} spread between draws",
                len(labels),
                max(labels) + 1,
                draws,
                None,
                cover=cover,
                alarms=100 - cover,
            )


def model_losses(generator: Generator, draws: int, labels: list[int], spread: float) -> Floats:
    """(draws, items): a draw's own level, what it does to each article, and each window's noise."""
    groups = max(labels) + 1
    level = spread * generator.standard_normal((draws, 1))
    of_articles = 0.5 * generator.standard_normal((1, groups))
    of_both = 0.3 * generator.standard_normal((draws, groups))
    windows = 0.7 * generator.standard_t(5, (draws, len(labels)))
    return np.asarray(level + (of_articles + of_both)[:, labels] + windows)


def items_for_share(discordance: float, difference: float, sided: int) -> int:
    """Pairs of right and wrong answers that show a difference of this size by McNemar's test.

    discordance: the share of answers that differ, at least the difference. sided: 1 or 2. Connor
    1987, Biometrics 43, 207.
    """
    null = special.ndtri(1 - ALPHA / sided) * math.sqrt(discordance)
    other = special.ndtri(POWER) * math.sqrt(discordance - difference**2)
    return math.ceil(((null + other) / difference) ** 2)


def powers(runs: int, seed: int) -> Iterator[Case]:
    """What was promised with 80 %: items for a share, and the smallest detectable mean."""
    generator = np.random.default_rng(seed)
    for discordance, difference in ((0.05, 0.03), (0.10, 0.03), (0.20, 0.03), (0.10, 0.05)):
        for sided in (1, 2):
            items = items_for_share(discordance, difference, sided=sided)
            lean = (1 + difference / discordance) / 2
            detected = []
            for _ in range(runs):
                base, candidate, _ = answers(generator, items, discordance, lean, clustered=False)
                estimate = share_difference(base, candidate)
                p_value = estimate.p_above(0.0) if sided == 1 else estimate.p_value
                detected.append(p_value <= 0.05)
            yield Case(
                f"a share's {100 * difference:.0f} points, {sided}-sided",
                items,
                items,
                1,
                discordance,
                power=100 * float(np.mean(detected)),
                promised=80.0,
            )
    for items in (20, 50, 200):
        shift = detectable(1 / np.sqrt(items), items - 1)
        detected = []
        for _ in range(runs):
            values = generator.standard_normal(items) + shift
            detected.append(mean_interval(values).p_value <= 0.05)
        power = 100 * float(np.mean(detected))
        yield Case("a mean's detectable difference", items, items, 1, None, None, None, power, 80.0)


def families(runs: int, seed: int) -> Iterator[Case]:
    """Twelve null comparisons at once: how often Holm lets any of them alarm."""
    generator = np.random.default_rng(seed)
    alarms = []
    for _ in range(runs):
        values = generator.standard_t(4, (12, 60))
        p_values = [mean_interval(row).p_value for row in values]
        alarms.append(min(holm(p_values)) <= 0.05)
    yield Case("any of 12, by Holm", 60, 60, 1, None, alarms=100 * float(np.mean(alarms)))
    for discordance in DISCORDANCE:
        changed = generator.binomial(200, discordance, runs)
        gained = generator.binomial(changed, 0.5)
        pairs = zip(gained.tolist(), (changed - gained).tolist(), strict=True)
        share = float(np.mean([mcnemar(one, other) <= 0.05 for one, other in pairs]))
        yield Case("McNemar, exact", 200, 200, 1, discordance, alarms=100 * share)


def gates(runs: int, seed: int) -> Iterator[Case]:
    """The gate on identical code with fresh calibration draws: three endpoints of one cell.

    As measured on SmolLM2: windows' log perplexity ratios spread by 0.05 nats, divergences by 12 %
    and solutions' by 0.05 nats, and draws by one to two errors over the items of one draw.
    """
    generator = np.random.default_rng(seed)
    margins = (0.02, float(np.log1p(0.05)), 0.02)
    for draws in (1, 4):
        for ratio in (1.0, 2.0):
            alarms = 0
            passes = 0
            for _ in range(runs):
                words, _ = looked(gate_harms(generator, draws, ratio), margins, (Look(draws),))
                alarms += "worse" in words
                passes += passing(words)
            yield Case(
                f"the gate on identical code, draws spread {ratio:.0f} errors",
                40,
                20,
                draws,
                None,
                alarms=100 * alarms / runs,
                power=100 * passes / runs,
            )


LABELS = [k // 2 for k in range(40)]  # of the gate's windows: two of an article


def gate_harms(
    generator: Generator, draws: int, ratio: float, shift: float = 0.0
) -> list[tuple[Floats, list[int] | None]]:
    """(draws, items) and clusters of the gate's three endpoints.

    ratio: how many errors over items draws spread. shift: the true harm of each, in its margins.
    """
    harms = []
    for spread, items, margin in ((0.05, 40, 0.02), (0.12, 40, 0.049), (0.05, 24, 0.02)):
        level = ratio * spread / np.sqrt(items) * generator.standard_normal((draws, 1))
        noise = spread * generator.standard_t(5, (draws, items)) / 1.29
        harms.append((shift * margin + level + noise, LABELS if items == 40 else None))
    return harms


def looked(
    harms: Sequence[tuple[Floats, list[int] | None]],
    margins: Sequence[float],
    schedule: Sequence[Look],
) -> tuple[list[str], list[Difference]]:
    """The words and intervals of all endpoints at the look that decides, or the last.

    It decides where anything is worse or all pass, as in `qbench regress`.
    """
    words: list[str] = []
    intervals: list[Difference] = []
    for look in schedule:
        intervals = []
        for values, labels in harms:
            part = values[: look.draws]
            intervals.append(crossed_mean(part, labels, look.level, not look.last))
        words = [str(verdict.word) for verdict in judge(intervals, margins, look.share)]
        if "worse" in words or passing(words):
            break
    return words, intervals


def passing(words: Sequence[str]) -> bool:
    """Whether every endpoint passes."""
    return all(word in ("same", "better") for word in words)


def stopping(runs: int, seed: int) -> Iterator[Case]:
    """Looks after 2, 3 and 4 draws, in the cases of `crossed` and of `gates`.

    No difference and a margin of 0 is the worst case: to stop before the end is then to be wrong.
    """
    generator = np.random.default_rng(seed)
    labels = [k // 2 for k in range(48)]
    for spread, name in ((0.0, "no"), (0.2, "some"), (0.5, "much")):
        held = 0
        made = 0
        for _ in range(runs):
            base, candidate = (model_losses(generator, 4, labels, spread) for _ in range(2))
            _, (interval,) = looked([(candidate - base, labels)], [0.0], looks(4))
            held += holds(interval, 0.0)
            made += interval.draws
        cover = 100 * held / runs
        yield Case(
            f"stopping early, {name} spread between draws",
            len(labels),
            24,
            4,
            None,
            cover=cover,
            alarms=100 - cover,
            made=made / runs,
        )
    margins = (0.02, float(np.log1p(0.05)), 0.02)
    for shift, name in ((0.0, "identical code"), (1.0, "a loss of the margin"), (30.0, "30 times")):
        for ratio in (1.0, 2.0):
            alarms = 0
            made = 0
            for _ in range(runs):
                harms = gate_harms(generator, 4, ratio, shift)
                words, intervals = looked(harms, margins, looks(4))
                alarms += "worse" in words
                made += intervals[0].draws
            share = 100 * alarms / runs
            yield Case(
                f"stopping early, the gate on {name}, draws spread {ratio:.0f} errors",
                40,
                20,
                4,
                None,
                alarms=share if shift <= 1 else None,
                power=share if shift > 1 else None,
                made=made / runs,
            )


def simulate(runs: int, show: Callable[[Case], None] = lambda case: None) -> list[Case]:
    """All cases. runs: comparisons drawn for each."""
    cases = []
    sources = (
        exact_shares(),
        shares_in_clusters(runs, 1),
        means(runs, 2),
        crossed(runs, 3),
        powers(runs, 4),
        families(runs, 5),
        gates(runs, 6),
        stopping(runs, 7),
        crossed_unequal(runs, 8),
    )
    for source in sources:
        for case in source:
            show(case)
            cases.append(case)
    return cases


def line(case: Case) -> str:
    """One row of the table on the screen."""
    discordance = "" if case.discordance is None else f"{100 * case.discordance:.0f} %"
    figures = [
        f"{name} {value:.1f}"
        for name, value in (
            ("cover", case.cover),
            ("alarms", case.alarms),
            ("power", case.power),
            ("draws made", case.made),
        )
        if value is not None
    ]
    counts = f"{case.items:5} items {case.clusters:5} clusters {case.draws} draws"
    return f"{case.name:50} {counts} {discordance:>5}  {'  '.join(figures)}"


def main() -> None:
    """Print every case, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    cases = simulate(options.runs, lambda case: print(line(case), flush=True))
    seconds = time.perf_counter() - start
    print(f"{seconds:.0f} s")
    if options.json:
        body = {
            "command": f"python -P benchmarks/coverage.py --runs {options.runs}",
            "runs": options.runs,
            "seconds": round(seconds),
            "cases": [asdict(case) for case in cases],
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
