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
    """The YAML block at the head of a README.md; empty where there is none that can be read.

    Where it begins and ends is the hub's own rule.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        text = card_text(card)
        block = REGEX_YAML_BLOCK.search(text)
        content = yaml.safe_load(block[2]) if block else None
    except (StoreError, yaml.YAMLError, RecursionError):
        return {}
    except (ValueError, LookupError, AttributeError):  # of numbers and dates that are none
        return {}
    return content if isinstance(content, dict) else {}


def card_text(card: Path) -> str:
    """What a README.md says, without the mark that some editors put before a text in UTF-8.

    StoreError where it is no ordinary text.
    """
    return ordinary_text(card, card.parent).removeprefix("\ufeff")


def _licence(source: ModelSource) -> str | None:
    folder = local_folder(source)
    if folder is None:
        return None
    licence = card_metadata(folder / "README.md").get("license")
    if isinstance(licence, str) and 0 < len(licence) <= _LONGEST and licence.isprintable():
        return licence
    return None
