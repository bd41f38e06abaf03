"""Texts cut into windows of tokens, for calibration and for evaluation.

The texts are joined by blank lines and tokenised once (BOS only where the tokenizer puts it, at the
start), then cut into non-overlapping windows; the tail is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import LongTensor, Tensor

from qbench.errors import DataError, require_at_least, require_seed
from qbench.models.tokenizers import without_ending

BETWEEN = "\n\n"  # joins the texts


def windows(
    texts: str | Sequence[str],
    tokenizer: Any,
    length: int,
    limit: int | None = None,
    between: str = BETWEEN,
) -> LongTensor:
    """(n, length) int64: the first `limit` windows of the joined texts, or all.

    texts: one, or several. between: what joins them. Raises DataError where not even one window is
    full.
    """
    require_at_least("length", length, least=2)
    require_at_least("limit", limit)
    tokens = _tokens(texts, tokenizer, between)
    count = len(tokens) // length
    if not count:
        raise DataError(
            f"the text has {len(tokens)} tokens and one window needs {length}; "
            "give more text or a smaller length"
        )
    return tokens[: count * length].view(count, length)[:limit]  # type: ignore[return-value]


def calibration_windows(
    texts: str | Sequence[str], tokenizer: Any, samples: int, length: int, seed: int
) -> LongTensor:
    """(samples, length) int64: windows drawn without repetition under `seed`, in the text's order.

    DataError where the texts have fewer; ConfigError for a number that is too small.
    """
    require_seed("seed", seed)
    require_at_least("samples", samples)
    require_at_least("length", length, least=2)
    tokens = _tokens(texts, tokenizer)
    count = len(tokens) // length
    if count < samples:
        raise DataError(
            f"the calibration text has {len(tokens)} tokens, {count} windows of length {length}; "
            f"{samples} are asked: give more text, or fewer or shorter samples"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(count, generator=generator)[:samples].sort().values
    return tokens[: count * length].view(count, length)[chosen]  # type: ignore[return-value]


def _tokens(texts: str | Sequence[str], tokenizer: Any, between: str = BETWEEN) -> Tensor:
    """(tokens,) int64 of the joined texts; DataError where these are empty."""
    joined = texts if isinstance(texts, str) else between.join(texts)  # one text is no sequence
    if not joined.strip():
        raise DataError("the text is empty; give a data source with text")
    ids = without_ending(tokenizer)(joined, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def calibration_facts(tokens: Tensor) -> dict[str, Any]:
    """How many windows of how many tokens, and 12 hex digits of their hash, JSON-able."""
    digest = hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()[:12]
    return {"tokens": list(tokens.shape), "sha256": digest}
