"""A model's head: the linear layer that gives the logits, often tied to the embedding."""

from __future__ import annotations

from typing import Any

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
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    return True
