"""How a score is written: its number, and its error or its interval."""

from __future__ import annotations

import math

from qbench.comparison.digits import LARGE, exponential, places_of, plain
from qbench.comparison.pairs import Contrast
from qbench.records import Score
from qbench.stats.clustered import LEVEL, quantile
from qbench.stats.shares import wilson
from qbench.tasks.registry import declared_score, nature_of, unit_of

FEW = 5  # degrees of freedom, below which one standard error says too little


def score_text(
    score: Score, contrast: Contrast | None = None, digits: int = 2, gap: str = " "
) -> str:
    """`3.21 ± 0.04`, with its standard error; `0.0 [0.0, 65.8]`, with a 95 % interval.

    That is there of a share of right answers, where it tells how little 0 of 2 says, of an error
    that rests on a few clusters, and of what is a difference from the unquantized model by its
    nature, whose contrast is given.
    """
    ends = answer_interval(score)
    if ends is None and score.stderr and score.degrees is not None and score.degrees < FEW:
        ends = student_interval(score)
    if contrast is not None:
        interval = contrast.difference
        below, above = interval.low - interval.value, interval.high - interval.value
        ends = (score.value + below, score.value + above)
    unit = unit_of(score.task, score.metric)
    if ends is None:
        return number(score.value, score.stderr, unit, digits, gap)
    half = (ends[1] - ends[0]) / 2
    texts = [_written(x, half, unit, digits)[0] for x in (score.value, *ends)]
    return f"{texts[0]}{gap}[{texts[1]},{gap}{texts[2]}]"


def answer_interval(score: Score) -> tuple[float, float] | None:
    """Of a share of right answers, 0 to 1; older records lack it, which matters at 0 and 1."""
    if score.low is not None and score.high is not None:
        return score.low, score.high
    declared = declared_score(score.task, score.metric)
    answers = declared is not None and declared.unit == "%" and declared.nature == "plain"
    if answers and score.value in (0.0, 1.0) and not score.stderr:
        return wilson(score.value, score.n)
    return None


def student_interval(score: Score) -> tuple[float, float]:
    """95 %, by the degrees of freedom of clusters; older records do not tell them.

    Of a perplexity it is that of its logarithm. It does not go beyond what the score can be.
    """
    degrees = math.inf if score.degrees is None else score.degrees
    reach = quantile(LEVEL, degrees) * (score.stderr or 0.0)
    if nature_of(score.task, score.metric) == "perplexity" and score.value:
        factor = math.exp(min(reach / score.value, 700))
        return score.value / factor, score.value * factor
    least, largest = _range(score)
    return max(least, score.value - reach), min(largest, score.value + reach)


def _range(score: Score) -> tuple[float, float]:
    """The least and the largest value that a score could have, as far as its unit tells.

    Losses and divergences in nats are not negative, and log-probabilities not positive.
    """
    unit = unit_of(score.task, score.metric)
    if unit == "%":
        return 0.0, 1.0
    if not unit.startswith("nats"):
        return -math.inf, math.inf
    if score.higher_is_better:
        return -math.inf, 0.0 if score.value <= 0 else math.inf
    return 0.0 if score.value >= 0 else -math.inf, math.inf


def number(value: float, stderr: float | None, unit: str, digits: int = 2, gap: str = " ") -> str:
    """`35.0 ± 0.8`: a share times 100, else as many places as give the error `digits` digits.

    What needs more than five has an exponent: `4.90e-6 ± 1.2e-7`.
    """
    shown, error = _written(value, stderr, unit, digits)
    return f"{shown}{gap}±{gap}{error}" if error else shown


def _written(value: float, stderr: float | None, unit: str, digits: int) -> tuple[str, str]:
    """A value and its error, empty where it has none."""
    is_share = unit == "%"
    scale = 100.0 if is_share else 1.0
    value = value * scale
    error = (stderr or 0.0) * scale
    if not math.isfinite(value):
        return str(value), ""
    if not math.isfinite(error):
        error = 0.0
    if not is_share and value == error == 0:
        return "0", ""
    if abs(value) >= LARGE:
        shown, shown_error = exponential(value, 1), exponential(error, 0)
    else:
        # Without an error, a hundredth of the value takes its place.
        places = 1 if is_share else places_of(error or abs(value) / 100, digits)
        shown, shown_error = plain(value, places), plain(error, places)
    return shown, shown_error if error else ""
