"""What decides a comparison: which scores, in which unit, and how much worse still passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qbench.comparison.pairs import ScoreKey
from qbench.comparison.samples import Items
from qbench.errors import ConfigError, unknown_name
from qbench.records import Record, Score
from qbench.stats.difference import Difference, Floats, log_ratio_items
from qbench.stats.replicates import MeanSquares, crossed_mean, crossed_share, mean_squares
from qbench.stats.sequential import ONE_LOOK, Look
from qbench.tasks.registry import declared_score

# By metric, how much worse still passes. In nats, but of divergences the share of the base's own
# and of answers the share of all.
MARGINS = {
    "perplexity": 0.02,
    "kl_mean": 0.05,
    "gold_nll": 0.02,
    "acc": 0.01,
    "exact_match": 0.01,
}
# What their tasks must declare, unit or nature, for a margin to mean this.
MEANT = {
    "perplexity": ("perplexity",),
    "kl_mean": ("relative",),
    "gold_nll": ("nats", "nats per token"),
    "acc": ("%",),
    "exact_match": ("%",),
}
LEAST_KL = 1e-4  # nats, as which less counts: a ratio would be one of rounding errors


@dataclass(frozen=True)
class Endpoint:
    """One score that decides. margin: of `harm`, in its unit."""

    key: ScoreKey
    margin: float
    higher_is_better: bool

    @property
    def name(self) -> str:
        """`wikitext perplexity` or `gsm8k exact_match (strict-match)`."""
        task, metric, name = self.key
        return f"{task} {metric}" + (f" ({name})" if name != "none" else "")

    @property
    def unit(self) -> str:
        """What harm is measured in: `log ratio`, `points` of percent or `nats`."""
        if self.key[1] in ("perplexity", "kl_mean"):
            return "log ratio"
        return "points" if self.counts_answers else "nats"

    @property
    def counts_answers(self) -> bool:
        """Whether items are right or wrong."""
        return self.key[1] in ("acc", "exact_match")

    def harms(self, base: Floats, candidate: Floats) -> Floats:
        """How much worse the candidate is, for each pair of values (draws, items) of both."""
        if self.key[1] == "kl_mean":
            rows = zip(base, candidate, strict=True)
            pairs = [(_raised(entry), _raised(other)) for entry, other in rows]
            return np.stack([log_ratio_items(*pair) for pair in pairs])
        sign = -1.0 if self.higher_is_better else 1.0
        return np.asarray(sign * (candidate - base))

    def harm(
        self,
        base: Floats,
        candidate: Floats,
        clusters: Sequence[str] | None,
        look: Look = ONE_LOOK,
        identical: bool = False,
    ) -> Difference:
        """How much worse the candidate is, over draws and clusters of items.

        look: whose level the interval has. identical: whether all that is known of the items is the
        same to the last digit, likelihoods too, so that the difference is 0 and no estimate of it.
        """
        both = np.concatenate([np.ravel(base), np.ravel(candidate)])
        whole = np.isin(both, (0.0, 1.0)).all()  # and not parts of an answer
        if self.counts_answers and whole and not identical:
            return crossed_share(candidate, base, clusters, look.level, not look.last)
        harms = self.harms(base, candidate)
        return crossed_mean(harms, clusters, look.level, not look.last)

    def spread(
        self, base: Floats, candidate: Floats, clusters: Sequence[str] | None
    ) -> MeanSquares | None:
        """What draws and clusters spread; None of a single draw."""
        return mean_squares(self.harms(base, candidate), clusters)

    def refusal(self, base: Floats, candidate: Floats) -> str | None:
        """Why (draws, items) of both decide nothing; None where they do."""
        if self.key[1] == "kl_mean" and max(base.mean(), candidate.mean()) < LEAST_KL:
            return f"both diverge by less than {LEAST_KL} nats, so that a ratio says nothing"
        return None


def endpoints(
    base: Record, candidate: Record, margins: Mapping[str, float], tasks: Sequence[str] | None
) -> list[Endpoint]:
    """The scores of either cell that have a margin, in the order of the base's record.

    tasks: those that count, None for all. A score that one side lacks is among them; one that its
    task declares to be something else than what the margin is for is not.
    """
    endpoints: dict[ScoreKey, Endpoint] = {}
    for record in (base, candidate):
        for score in record.scores:
            key = (score.task, score.metric, score.filter)
            wanted = tasks is None or score.task in tasks
            counts = wanted and score.metric in margins and _is_meant(score)
            if counts and not _is_part(record, score.task):
                margin = margins[score.metric]
                if score.metric == "kl_mean":
                    margin = math.log1p(margin)
                endpoints[key] = Endpoint(key, margin, score.higher_is_better)
    return list(endpoints.values())


def read_margins(settings: Sequence[str]) -> dict[str, float]:
    """`["acc=0.02"]` over the defaults.

    ConfigError for an unknown metric, for one that is given twice, and for no positive number.
    """
    stated: dict[str, float] = {}
    for setting in settings:
        metric, _, text = setting.partition("=")
        if metric not in MARGINS:
            raise ConfigError(unknown_name("metric in --margin", metric, MARGINS))
        try:
            margin = float(text)
        except ValueError:
            margin = math.nan
        if not 0 < margin < math.inf:
            raise ConfigError(
                f"--margin {setting!r} is not METRIC=NUMBER with a number above 0; for example "
                f"--margin {metric}={MARGINS[metric]}"
            )
        if metric in stated:
            raise ConfigError(f"--margin {metric} is given twice; keep one of them")
        stated[metric] = margin
    return MARGINS | stated


def values(base: Sequence[Items], candidate: Sequence[Items]) -> tuple[Floats, Floats]:
    """(draws, items) of both, the items in the order of the first base."""
    return _table(base, base[0]), _table(candidate, base[0])


def _raised(values: Floats) -> Floats:
    """Divergences (items,), raised together to a mean of LEAST_KL where it is less."""
    return np.asarray(values + max(0.0, LEAST_KL - values.mean()))


def _table(draws: Sequence[Items], first: Items) -> Floats:
    rows = []
    for items in draws:
        places = {key: index for index, key in enumerate(items.keys)}
        rows.append(items.values[[places[key] for key in first.keys]])
    return np.stack(rows)


def _is_part(record: Record, task: str) -> bool:
    """Whether a score is of a part of a task, such as a group of subjects, which has no items."""
    return all(spec.name != task for spec in record.cell.tasks)


def _is_meant(score: Score) -> bool:
    """Whether a metric is what its margin is for; so it is where its task is not there to tell."""
    declared = declared_score(score.task, score.metric)
    if declared is None:
        return True
    return not {declared.unit, declared.nature}.isdisjoint(MEANT[score.metric])
