"""What a model writes itself: the beginnings of windows of a text, continued greedily."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qbench.errors import ConfigError, StoreError
from qbench.files.atomic import write_whole
from qbench.models.paging import is_paged

BATCH = 16  # windows at a time


def prompt_of(length: int) -> int:
    """How many tokens of a window of this length are kept: 32, or half of a short one."""
    return min(32, length // 2)


def write_continued(model: Any, windows: Tensor, path: Path) -> Tensor:
    """(n, length) int64: each window's beginning, and the likeliest tokens behind it, in a file.

    An end of text is not written, so that all windows are whole. ConfigError for a model that is
    larger than the memory, which would be read once for every token.
    """
    if is_paged(model):
        raise ConfigError(
            "a model that is larger than the memory writes no text of its own in any reasonable "
            "time; leave `own` out of --text"
        )
    device = model.get_input_embeddings().weight.device
    length = windows.shape[1]
    prompt = prompt_of(length)
    parts = []
    for batch in windows[:, :prompt].split(BATCH):
        tokens = batch.to(device)
        written = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_k=None,
            top_p=None,
            repetition_penalty=1.0,
            min_new_tokens=length - prompt,
            max_new_tokens=length - prompt,
            pad_token_id=0,  # all are of one length
        )
        parts.append(written.cpu())
    tokens = torch.cat(parts)

    def fill(part: Path) -> None:
        with part.open("wb") as file:
            np.save(file, tokens.numpy())

    write_whole(path, fill)
    return tokens


def read_continued(path: Path) -> Tensor:
    """What `write_continued` kept; StoreError where it cannot be read."""
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path} cannot be read as tokens ({error}); remove it") from error
