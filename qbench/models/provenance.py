"""Where a model is from, for the card of what is made of it: its id on the hub, and its licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qbench.errors import StoreError
from qbench.files.ordinary import ordinary_text
from qbench.models.source import BUILT_IN, ModelSource, local_folder

EMBEDDED = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "licence": "apache-2.0"}
_LONGEST = 100  # characters of a licence's name


def provenance(source: ModelSource) -> dict[str, str]:
    """`base_model`, an id of the hub, and `licence`, as far as they are known.

    The licence is what the model's own card states, in its folder or in the hub's cache.
    """
    if source.name in BUILT_IN:
        return dict(EMBEDDED)
    facts: dict[str, str] = {}
    if not source.local:
        facts["base_model"] = source.location
    licence = _licence(source)
    if licence is not None:
        facts["licence"] = licence
    return facts


def card_metadata(card: Path) -> dict[str, Any]:
    """The YAML block at the head of a README.md; empty where there is none that can be read."""
    try:
        text = ordinary_text(card, card.parent)
        _, block, _ = text.split("---\n", 2)
        content = yaml.safe_load(block)
    except (StoreError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _licence(source: ModelSource) -> str | None:
    folder = local_folder(source)
    if folder is None:
        return None
    licence = card_metadata(folder / "README.md").get("license")
    if isinstance(licence, str) and 0 < len(licence) <= _LONGEST and licence.isprintable():
        return licence
    return None
