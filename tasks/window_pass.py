"""One pass of the model under test over windows of text, for all tasks that judge these windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qbench.errors import StoreError
from qbench.records import TaskSpec
from qbench.tasks.article_windows import ArticleWindows
from qbench.tasks.contract import Context
from qbench.tasks.engines import Engine
from qbench.tasks.reference import (
    ReferenceLogits,
    digest_of,
    divergences,
    parts_of,
    reference_key,
    window_logits,
)


@dataclass(frozen=True)
class WindowLosses:
    """What one window says.

    digest: sha256 of its tokens, of which `first` is the first. article: which it is from, None
    where that is not known. nll: mean negative log-likelihood, in nats per token. kl, reverse
    (length - 1,) float32: KL(P || Q) and KL(Q || P) per position, in nats. agree (length - 1,)
    float32: 1 where the top token is that of the unquantized model, else 0. Without a reference kl,
    reverse and agree are empty.
    """

    digest: str
    article: str | None
    nll: float
    kl: np.ndarray[Any, Any]
    agree: np.ndarray[Any, Any]
    reverse: np.ndarray[Any, Any]
    first: int


def measure(
    context: Context, spec: TaskSpec, windows: ArticleWindows, compares: bool = False
) -> list[WindowLosses]:
    """The losses of every window; a second task on the same windows finds them in the cell's cache.

    compares: whether the task is about the reference, and not only leaves its losses to one that
    is. Raises StoreError where the reference is then of other windows, or is of another model.
    """
    inputs = windows.tokens
    digest = digest_of(inputs)
    reference = context.cache.get(reference_key(spec))
    if reference is not None and not compares and reference.tokens not in ("", digest):
        reference = None
    key = ("windows", digest, tuple(inputs.shape), windows.articles, reference)
    if key in context.cache:
        return context.cache[key]
    count = len(inputs)
    losses = []
    if isinstance(context.model, Engine):
        of_windows = _of_an_engine(context, spec, inputs)
    else:
        of_windows = _of_a_model(context, reference, inputs)
    for index, of_window in of_windows:
        losses.append(replace(of_window, article=windows.articles[index]))
        context.progress((index + 1) / count, f"{spec.name}  {index + 1}/{count} windows")
    context.cache[key] = losses
    return losses


def _of_a_model(
    context: Context, reference: ReferenceLogits | None, inputs: Tensor
) -> Iterator[tuple[int, WindowLosses]]:
    for index, logits in window_logits(context.model, inputs, context.batch_size):
        _check_reference(reference, len(inputs), logits)
        if reference is not None and index == 0:
            reference.require_tokens(inputs)
        yield index, _losses(logits, inputs[index], reference, index)


def _of_an_engine(
    context: Context, spec: TaskSpec, inputs: Tensor
) -> Iterator[tuple[int, WindowLosses]]:
    """An engine gives the likelihood of what was read, and no distributions."""
    nothing = torch.zeros(0).numpy()
    likelihoods = context.model.likelihoods(context, spec.name, inputs)
    for index, (tokens, likelihood) in enumerate(zip(inputs, likelihoods, strict=True)):
        yield (
            index,
            WindowLosses(
                digest=digest_of(tokens),
                article=None,
                nll=-likelihood / (len(tokens) - 1),
                kl=nothing,
                agree=nothing,
                reverse=nothing,
                first=int(tokens[0]),
            ),
        )


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
    stored = None if reference is None else reference.read(index).to(logits.device)
    nll = 0.0
    kl = [torch.zeros(0)]
    reverse = [torch.zeros(0)]
    agree = [torch.zeros(0)]
    for part in parts_of(len(logits), logits.device):
        q = logits[part].float().log_softmax(-1)  # (positions, V)
        nll -= float(q.gather(1, targets[part, None]).double().sum())
        if stored is not None:
            p = stored[part].float()
            forward, backward = divergences(p, q)
            kl.append(forward.cpu())
            reverse.append(backward.cpu())
            agree.append(_agreement(p, q).float().cpu())
    return WindowLosses(
        digest=digest_of(tokens),
        article=None,
        nll=nll / len(targets),
        kl=torch.cat(kl).numpy(),
        agree=torch.cat(agree).numpy(),
        reverse=torch.cat(reverse).numpy(),
        first=int(tokens[0]),
    )


def _agreement(p: Tensor, q: Tensor) -> Tensor:
    """(positions,) bool: whether Q's top token is one of P's; a tie after rounding agrees."""
    log_p_of_top = p.gather(1, q.argmax(-1, keepdim=True))[:, 0]
    return log_p_of_top >= p.amax(-1)
