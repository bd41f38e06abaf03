"""One pass of the model under test over windows of text, for all tasks that judge these windows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qbench.errors import StoreError
from qbench.records import TaskSpec
from qbench.tasks.article_windows import article_windows
from qbench.tasks.contract import Context
from qbench.tasks.reference import ReferenceLogits, parts_of, reference_key, window_key, window_logits


@dataclass(frozen=True)
class WindowLosses:
    """What one window says.

    digest: sha256 of its tokens. article: which it is from, None where that is not known. nll: mean
    negative log-likelihood, in nats per token.
    kl (length - 1,) float32: KL(P || Q) per position, in nats.
    agree (length - 1,) float32: 1 where the top token is that of the unquantized model, else 0.
    Without a reference kl and agree are empty.
    """

    digest: str
    article: str | None
    nll: float
    kl: np.ndarray[Any, Any]
    agree: np.ndarray[Any, Any]


def measure(context: Context, spec: TaskSpec, table_name: str) -> list[WindowLosses]:
    """The losses of every window; a second task on the same windows finds them in the cell's cache.

    Raises StoreError where the reference is of other windows or of another model.
    """
    reference = context.cache.get(reference_key(spec))
    key = ("windows", *window_key(spec), reference)
    if key in context.cache:
        return context.cache[key]
    texts = context.source.text(table_name)
    found = article_windows(texts, context.tokenizer, spec)
    inputs = found.tokens
    count = len(inputs)
    losses = []
    for index, logits in window_logits(context.model, inputs, context.batch_size):
        _check_reference(reference, count, logits)
        of_window = _losses(logits, inputs[index], reference, index)
        losses.append(replace(of_window, article=found.articles[index]))
        context.progress((index + 1) / count, f"{spec.name}  {index + 1}/{count} windows")
    context.cache[key] = losses
    return losses


def _check_reference(reference: ReferenceLogits | None, count: int, logits: Tensor) -> None:
    shape = (count, *logits.shape)
    if reference is not None and reference.shape != shape:
        raise StoreError(
            f"{reference.path} holds (windows, positions, vocabulary) {reference.shape} and the "
            f"model gives {shape}; it is of another text, length or model: remove it"
        )


def _losses(
    logits: Tensor, tokens: Tensor, reference: ReferenceLogits | None, index: int
) -> WindowLosses:
    """logits: (length - 1, V). tokens: (length,). index: of the window in the reference."""
    targets = tokens[1:].to(logits.device)  # (length - 1,)
    nll = 0.0
    kl = [np.zeros(0, dtype=np.float32)]
    agree = [np.zeros(0, dtype=np.float32)]
    for part in parts_of(len(logits)):
        q = logits[part].float().log_softmax(-1)  # (positions, V)
        nll -= float(q.gather(1, targets[part, None]).double().sum())
        if reference is None:
            continue
        stored = reference.read(index, part).to(q.device)
        kl.append(_divergence(stored, q).cpu().numpy())
        agree.append(_agreement(stored, q).cpu().numpy())
    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    return WindowLosses(digest, None, nll / len(targets), np.concatenate(kl), np.concatenate(agree))


def _divergence(stored: Tensor, q: Tensor) -> Tensor:
    """(positions,): KL(P || Q) in nats, of log-probabilities (positions, V), P's in float16."""
    # Rounded to float16 they are no longer a distribution: make them one again.
    p = stored.float().log_softmax(-1)
    weight = p.exp()
    return torch.where(weight > 0, weight * (p - q), 0.0).sum(-1)


def _agreement(stored: Tensor, q: Tensor) -> Tensor:
    """(positions,) bool: whether Q's top token is one of P's; a tie after rounding agrees."""
    log_p_of_top = stored.gather(1, q.argmax(-1, keepdim=True))[:, 0]
    return log_p_of_top >= stored.amax(-1)
