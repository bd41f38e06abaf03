"""Checks of what `quantize` is given, before any work: model, calibration, settings of the walk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from qbench.calibration.windows import windows
from qbench.contracts import Scheme
from qbench.errors import ConfigError, ModelError, reason_of, require_at_least

_TEXT_WINDOWS = 64  # taken from texts that calibrate
_TEXT_LENGTH = 512  # tokens in each of them
_MASKED_ONLY = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()} - {
    *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
}  # classes of transformers
_OFFSET = 2  # rows that some tables of positions have before the first


def require_settings(scheme: Any, batch_size: Any, device: str) -> torch.device:
    """The device of that name; ConfigError where there is none, or another setting is invalid."""
    if not isinstance(scheme, Scheme):
        raise ConfigError(
            f"scheme={scheme!r} is no scheme; give one, such as qbench.Scheme(bits=4)"
        )
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise ConfigError(f"batch_size={batch_size!r} is no count; give an integer of 1 or more")
    require_at_least("batch_size", batch_size)
    return require_device(device)


def require_device(device: Any) -> torch.device:
    """The device of that name; ConfigError where torch has none here, or it holds no data."""
    try:
        where = torch.device(device)
        torch.empty(0, device=where).tolist()  # raises on the meta device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"device={device!r} cannot be used here ({reason_of(error)}); "
            "give 'cpu', or a device that torch has"
        ) from None
    return where


def require_decoder(model: Any) -> None:
    """ModelError for a model that has an encoder, or is one; its config and class say so."""
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        problem = "has an encoder beside its decoder"
    elif kind in _MASKED_ONLY:
        problem = "fills gaps, and predicts no next token"
    else:
        return
    raise ModelError(f"a {kind} {problem}; qbench quantizes decoders alone: give a causal model")


def calibration_tokens(model: Any, calibration: Any, tokenizer: Any, needed_by: str) -> Tensor:
    """Token ids (samples, length), int64, that the model can take.

    calibration: token ids or texts, as `quantize` takes them. needed_by: in words. ConfigError
    where it is None or anything else, or where a token or a position is none of the model's;
    DataError where texts are too short.
    """
    if calibration is None:
        raise ConfigError(
            f"{needed_by} needs calibration: give token ids (samples, length), or texts"
        )
    if not isinstance(calibration, Tensor):
        calibration = _from_texts(calibration, tokenizer)
    _require_ids(calibration)
    _require_range(model, calibration)
    tokens: Tensor = calibration.long()
    return tokens


def _from_texts(texts: Any, tokenizer: Any) -> Tensor:
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"the calibration, a {type(texts).__name__}, is neither texts nor a tensor; give a "
            "list of strings, or token ids as a tensor of int64 (samples, length)"
        )
    if tokenizer is None:
        raise ConfigError(
            "the calibration is text, and there is no tokenizer; give one (tokenizer=...), or "
            "token ids (samples, length)"
        )
    return windows(texts, tokenizer, length=_TEXT_LENGTH, limit=_TEXT_WINDOWS)


def _require_ids(tokens: Tensor) -> None:
    """ConfigError unless a tensor is of integers that can be token ids, (samples, length)."""
    if tokens.dtype not in (torch.int32, torch.int64):
        raise ConfigError(
            f"the calibration is a tensor of {tokens.dtype}; give token ids, int64 or int32"
        )
    if tokens.ndim != 2 or not tokens.numel():
        raise ConfigError(
            f"the calibration has the shape {tuple(tokens.shape)}; give token ids (samples, "
            "length) with at least one of each"
        )


def _require_range(model: Any, tokens: Tensor) -> None:
    """ConfigError where a token or a position is not in a table of the model."""
    rows = model.get_input_embeddings().weight.shape[0]
    low, high = (int(end) for end in tokens.aminmax())
    if low < 0 or high >= rows:
        raise ConfigError(
            f"the calibration has the token {low if low < 0 else high}, and the model's tokens are "
            f"from 0 to {rows - 1}; tokenise with the model's own tokenizer"
        )
    longest = _positions(model)
    if longest is not None and tokens.shape[1] > longest:
        raise ConfigError(
            f"the calibration has samples of {tokens.shape[1]} tokens, and the model has learned "
            f"{longest} positions; give shorter samples"
        )


def _positions(model: Any) -> int | None:
    """How many positions a model has in a table; None where it computes them.

    A table is known by its rows, as many as the config says that there are positions.
    """
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(stated, int):
        return None
    words = model.get_input_embeddings()
    tables = [tensor for tensor in model.buffers() if tensor.ndim == 2]
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module is not words:
            tables.append(module.weight)
    known = any(stated <= table.shape[0] <= stated + _OFFSET for table in tables)
    return stated if known else None
