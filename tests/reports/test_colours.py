"""The colours of methods, as people with each kind of colour blindness see them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from qbench.reports.looks import COLOURS

# Of linear RGB, severity 1: Machado, Oliveira and Fernandes 2009, doi:10.1109/TVCG.2009.113.
VISIONS = {
    "all cones": [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
    "protanopia": [
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ],
    "deuteranopia": [
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ],
    "tritanopia": [
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ],
}
XYZ = [(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)]
WHITE = (0.9505, 1.0, 1.089)
LEAST = 10.0  # of CIE 1976; 2.3 is what is just seen


def linear(colour: str) -> np.ndarray:
    """(3,) linear RGB of `#rrggbb`."""
    values = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """(3,) CIE L*a*b* of linear RGB."""
    x = np.array(XYZ) @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("page", ["light", "dark"])
def test_no_two_colours_look_alike(page: str, vision: str) -> None:
    colours = list(COLOURS) if page == "light" else list(COLOURS.values())
    seen = [lab(np.array(VISIONS[vision]) @ linear(colour)) for colour in colours]
    nearest = min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2))
    assert nearest > LEAST
