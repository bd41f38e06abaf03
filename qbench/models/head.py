"""A model's head: the linear layer that gives the logits, often tied to the embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qbench.errors import ConfigError
from qbench.models.blocks import is_linear


def require_head(model: Any) -> tuple[str, Any]:
    """The head's full name, and the head; ConfigError where no linear layer gives the logits."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head and is_linear(module):
            return name, module
    raise ConfigError(
        f"a {type(model).__name__} has no linear layer as its head; leave out --head-bits"
    )


def untie_head(model: Any) -> bool:
    """Give a head that shares the embedding's weight one of its own; whether it did.

    The model's config says so from now on, and so does that of a folder which is saved.
    """
    _, head = require_head(model)
    embedding = model.get_input_embeddings()
    if head.weight is not embedding.weight:
        return False
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    _say_untied(model)
    return True


def tie_head(model: Any) -> None:
    """Tie what the config ties, but for a head whose own, other weight has been read.

    As transformers does when it reads files that hold both. model: filled, but for tensors that are
    not in its files, which are on the meta device.
    """
    say_own_head(model)
    model.tie_weights()


def say_own_head(model: Any) -> None:
    """Let the config say so where it ties a head whose own, other weight has been read.

    Else who reads the saved folder may put the embedding in its place.
    """
    configs = (model.config, model.config.get_text_config())
    if not any(getattr(config, "tie_word_embeddings", False) for config in configs):
        return
    head = getattr(model.get_output_embeddings(), "weight", None)
    if head is None or head.is_meta:
        return
    embedding = model.get_input_embeddings().weight
    if not (embedding.is_meta or head is embedding or torch.equal(head, embedding)):
        _say_untied(model)


def _say_untied(model: Any) -> None:
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
