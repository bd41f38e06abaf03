"""A number with as many digits as its error deserves, and none that rounding takes away."""

from __future__ import annotations

import math

MOST_PLACES = 5  # after the point; a small number that needs more is written with an exponent
SMALL = 1e-3  # a number below this is a small one
LARGE = 1e5  # from this on numbers have an exponent, too


def places_of(smallest: float, digits: int) -> int:
    """After how many decimal places `smallest`, which is above 0, has `digits` significant ones."""
    # The first significant digit of s stands at place -floor(log10 s) after the point.
    return max(0, digits - 1 - math.floor(math.log10(smallest)))


def plain(value: float, places: int) -> str:
    """`19.84`, `4.90e-6` or `1.1e6`; `∞` where it is not finite.

    places: after the point, also of a number with an exponent, as if it were written out.
    """
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if size >= LARGE:
        return exponential(value, 1)
    if places > MOST_PLACES and not size:
        return "0"
    if places > MOST_PLACES and size < SMALL:
        mantissa = places + math.floor(math.log10(size))
        return exponential(value, min(max(0, mantissa), MOST_PLACES))
    return f"{value:.{min(places, MOST_PLACES)}f}"


def exponential(value: float, places: int) -> str:
    """`1.1e6` or `4.9e-6`, without a plus or a leading zero in the exponent."""
    mantissa, _, exponent = f"{value:.{places}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
