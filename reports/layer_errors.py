"""The errors of a cell's layers as a picture: a column per block, a row per kind of layer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from qbench.outside_text import printable

# By the key of a block's log: what the numbers are, the first that is there being shown.
MEANINGS = {
    "output_errors": "squared error of a layer's output on the calibration text, over the mean "
    "square of that output",
    "weight_errors": "squared error of a layer's weights, over their own squares",
    "site_errors": "squared error of the output of what the layers feed, over that of plain "
    "rounding",
}
TILE = 20  # width and height of a tile
STEPS = 6  # of the legend
LEGEND = 72  # width of each
CHARACTER = 6.6  # width of one at 11 pixels


@dataclass(frozen=True)
class Tile:
    """One layer. x, y: its place. colour: of its error. text: what it is, in words."""

    x: float
    y: float
    colour: str
    text: str

    def svg(self, left: float) -> str:
        """The tile, and its words above the map, from `left` on."""
        words = escape(printable(self.text))
        side = TILE - 1
        return (
            f'<g class="tile" tabindex="0" role="img" aria-label="{words}"><title>{words}</title>'
            f'<rect x="{self.x}" y="{self.y}" width="{side}" height="{side}" fill="{self.colour}"/>'
            f'<text x="{left}" y="-8">{words}</text></g>'
        )


@dataclass(frozen=True)
class HeatMap:
    """A picture as numbers for the template.

    meaning: of the errors, which have no unit. columns: (x, block) below some columns. rows: (y,
    kind). legend: (x, colour, error).
    """

    meaning: str
    width: float
    height: float
    left: float
    tiles: list[Tile]
    columns: list[tuple[float, str]]
    rows: list[tuple[float, str]]
    legend: list[tuple[float, str, str]]

    @property
    def svg(self) -> Markup:
        """All tiles, joined here as a page has hundreds: the template takes as long for each."""
        return Markup("".join(tile.svg(self.left) for tile in self.tiles))


def heat_map(log: Mapping[str, Any]) -> HeatMap | None:
    """The errors that a cell's log holds; None where it holds none.

    Colours are spread over the logarithms, so that a factor looks the same everywhere.
    """
    for key, meaning in MEANINGS.items():
        errors = _errors(log, key)
        if errors:
            return _drawn(errors, meaning)
    return None


def _errors(log: Mapping[str, Any], key: str) -> dict[tuple[str, str], float]:
    """(block, kind of layer) -> error."""
    errors = {}
    for block, entry in log.items():
        if not isinstance(entry, Mapping):
            continue
        of_block = _site_errors(entry) if key == "site_errors" else entry.get(key)
        if isinstance(of_block, Mapping):
            for layer, error in of_block.items():
                if isinstance(error, int | float) and math.isfinite(error) and error >= 0:
                    errors[_number(block), str(layer)] = float(error)
    return errors


def _site_errors(entry: Mapping[str, Any]) -> dict[str, float]:
    """What a search of scales and clips has left of the error of plain rounding, by its layers."""
    errors = {}
    for layers, site in entry.items():
        if isinstance(site, Mapping) and isinstance(site.get("plain"), int | float):
            best = site.get("clipped", site.get("scaled"))
            if isinstance(best, int | float) and site["plain"] > 0:
                errors[layers] = best / site["plain"]
    return errors


def _number(block: str) -> str:
    """`model.layers.3` -> `3`; a name without a number as it is."""
    numbers = re.findall(r"\d+", block)
    return numbers[-1] if numbers else block


def _drawn(errors: Mapping[tuple[str, str], float], meaning: str) -> HeatMap:
    blocks = list(dict.fromkeys(block for block, _ in errors))
    kinds = list(dict.fromkeys(kind for _, kind in errors))
    left = CHARACTER * max(len(kind) for kind in kinds) + 8
    positive = [math.log(error) for error in errors.values() if error > 0] or [0.0]
    low, high = min(positive), max(positive)
    tiles = []
    for (block, kind), error in errors.items():
        share = (math.log(error) - low) / ((high - low) or 1.0) if error > 0 else 0.0
        x = left + TILE * blocks.index(block)
        y = TILE * kinds.index(kind)
        tiles.append(Tile(x, y, _colour(share), f"block {block}, {kind}: {error:.3g}"))
    legend = []
    for step in range(STEPS):
        share = step / (STEPS - 1)
        shown = f"{math.exp(low + share * (high - low)):.2g}".replace("e-0", "e-")
        legend.append((left + LEGEND * step, _colour(share), shown))
    every = max(1, math.ceil(len(blocks) / 40))
    middle = TILE / 2
    return HeatMap(
        meaning=meaning,
        width=left + max(TILE * len(blocks), LEGEND * STEPS),
        height=TILE * len(kinds),
        left=left,
        tiles=tiles,
        columns=[
            (left + TILE * k + middle, block) for k, block in enumerate(blocks) if k % every == 0
        ],
        rows=[(TILE * k + middle + 4, kind) for k, kind in enumerate(kinds)],
        legend=legend,
    )


def _colour(share: float) -> str:
    """From a light yellow, no error to speak of, over red to a dark violet, the largest.

    The lightness falls all the way, so that it can be read without colours.
    """
    return f"hsl({50 - 110 * share:.0f} {80 - 25 * share:.0f}% {88 - 62 * share:.0f}%)"
