"""Named settings of a grid: presets, and sweeps of variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PRESETS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8")
)
SWEEPS: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("sweeps.yaml").read_text(encoding="utf-8")
)
QUICK, STANDARD = "quick", "standard"  # what a processor can do in a break, and a GPU in a night


def preset_for(device: str, real_data: bool) -> str:
    """The preset that suits a machine: on a GPU as many items as papers take, where there are any.

    real_data: whether the data are not the few embedded items.
    """
    return STANDARD if device != "cpu" and real_data else QUICK
