"""Differences over several draws of the quantization, such as calibration samples.

Draws and clusters of items are crossed: each draw gives one model, which is judged on the same
items. Both are samples, so the variance of the grand mean has a part of each. Errors of items alone
take one model for the method, and alarm on calibration noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from qbench.stats.clustered import LEVEL, Labels, cluster_sums, clustered_variance, quantile
from qbench.stats.difference import Difference, mean_interval, share_difference, student


@dataclass(frozen=True)
class MeanSquares:
    """Of a table of draws x clusters: what each of the two, and both together, spread.

    draw, cluster, cell: mean squares, in the unit of the items squared. draws, clusters: how many.
    cluster_degrees: of freedom, of the clusters' mean square; clusters - 1 where all are of a size.
    """

    draw: float
    cluster: float
    cell: float
    draws: int
    clusters: int
    cluster_degrees: float

    @property
    def variance(self) -> float:
        """Of the grand mean, at least the larger of its two parts."""
        crossed = self.draw + self.cluster - self.cell
        return max(crossed, self.draw, self.cluster) / (self.draws * self.clusters)

    @property
    def degrees(self) -> float:
        """Degrees of freedom by Satterthwaite 1946, Biometrics Bulletin 2, 110.

        Where draws differ by more than chance (F test), they are those of the draws: his, from few
        draws, are too many where the draws happen to agree (93 % for 95 % covered at 4 draws).
        """
        of_draws, of_clusters = self.draws - 1, self.cluster_degrees
        if self.cell == 0 and self.draw > 0:
            return float(of_draws)
        chance = special.fdtrc(of_draws, of_draws * of_clusters, self.draw / (self.cell or 1.0))
        if chance < 0.05:
            return self.fewest_degrees
        spread = (
            self.draw**2 / of_draws
            + self.cluster**2 / of_clusters
            + self.cell**2 / (of_draws * of_clusters)
        )
        if spread == 0:
            return self.fewest_degrees
        scale = self.draws * self.clusters
        return max((self.variance * scale) ** 2 / spread, self.fewest_degrees)

    @property
    def fewest_degrees(self) -> float:
        """Degrees of freedom if all the spread were that of the draws, or of the clusters.

        Far out in the tails, as at an early look, those of Satterthwaite are too many.
        """
        return float(min(self.draws - 1, self.cluster_degrees))


def crossed_mean(
    values: ArrayLike,
    clusters: Labels | None = None,
    level: float = LEVEL,
    cautious: bool = False,
) -> Difference:
    """The mean of values (float64, (draws, items)), draws and clusters both taken as random.

    V = max(MS_draw + MS_cluster - MS_cell, MS_draw, MS_cluster) / (draws clusters), with Student's
    interval at the degrees of freedom of `MeanSquares.degrees`. One draw is `mean_interval`: the
    spread between draws is then not in it. cautious: whether the degrees of freedom are the fewest
    that there can be. ValueError where a value is not finite.
    """
    table = np.atleast_2d(np.asarray(values, np.float64))
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError("replicates are rows of at least one finite number, as many in each")
    if len(table) == 1:
        return mean_interval(table[0], clusters, level)
    squares = mean_squares(table, clusters)
    mean, items = float(table.mean()), table.shape[1]
    if squares is None:
        return student(mean, math.inf, 0.0, items, 1, len(table), level)
    return student(
        mean,
        math.sqrt(squares.variance),
        squares.fewest_degrees if cautious else squares.degrees,
        items,
        squares.clusters,
        squares.draws,
        level,
    )


def mean_squares(values: ArrayLike, clusters: Labels | None = None) -> MeanSquares | None:
    """Mean squares of values (float64, (draws, items)); None of a single draw or cluster.

    A cluster enters by the sum of its items' distances from their draw's mean, with the leverage
    and the degrees of freedom that it has in one draw (`clustered_variance`): those of clusters are
    of the mean over draws, those of cells of each draw's distances from it. Where all clusters are
    of a size, these are the mean squares of the two-way table of the clusters' means.
    """
    table = np.asarray(values, np.float64)
    draws = len(table)
    means = table.mean(axis=1)
    sizes = cluster_sums(table[0], clusters)[1]
    groups = len(sizes)
    if draws < 2 or groups < 2:
        return None
    sums = np.stack([cluster_sums(row, clusters)[0] for row in table - means[:, None]])
    of_clusters = sums.mean(axis=0)
    cluster, degrees = clustered_variance(of_clusters, sizes)
    cells = [clustered_variance(row - of_clusters, sizes)[0] for row in sums]
    return MeanSquares(
        draw=groups * float(means.var(ddof=1)),
        cluster=groups * draws * cluster,
        cell=groups * sum(cells) / (draws - 1),
        draws=draws,
        clusters=groups,
        cluster_degrees=degrees,
    )


def crossed_share(
    base: ArrayLike,
    candidate: ArrayLike,
    clusters: Labels | None = None,
    level: float = LEVEL,
    cautious: bool = False,
) -> Difference:
    """The difference of shares of right answers over draws. base, candidate (draws, items), 0 or 1.

    One draw is `share_difference`. Of several, the mean over draws is no count any more, and the
    interval is Student's, but it reaches -ln(1 - level) / items at least: where nothing changed on
    n items, up to 3 / n of all may (the rule of three, at 95 %). It ends within [-1, 1]. cautious:
    as in `crossed_mean`.
    """
    before = np.atleast_2d(np.asarray(base, np.float64))
    after = np.atleast_2d(np.asarray(candidate, np.float64))
    if len(before) == 1:
        return share_difference(before[0], after[0], clusters, level)
    interval = crossed_mean(after - before, clusters, level, cautious)
    least = -math.log(1 - level) / interval.items / quantile(level, interval.degrees)
    if interval.stderr < least:
        interval = student(
            interval.value,
            least,
            interval.degrees,
            interval.items,
            interval.clusters,
            interval.draws,
            level,
        )
    return replace(interval, low=max(interval.low, -1.0), high=min(interval.high, 1.0))
