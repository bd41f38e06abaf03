"""Perplexity, and divergence from the unquantized model, on the same windows in one pass over the model.

Perplexity follows Frantar et al. 2022 (GPTQ, arXiv:2210.17323): the texts joined by blank lines,
tokenised once (BOS only where the tokenizer puts it, at the start), cut into non-overlapping
windows of `length` tokens, the tail dropped; exp of the mean over windows of the mean negative
log-likelihood of their length - 1 predictions. It is a number per token: compare it only at the
same tokenizer, `length` and text.

Divergence is KL(P || Q) in nats, P of the unquantized and Q of the quantized model, over the whole
vocabulary at the same length - 1 positions of every window.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from qbench.calibration.windows import windows
from qbench.errors import ConfigError, MethodError, StoreError, require_at_least
from qbench.files.atomic import write_whole
from qbench.records import Score, TaskSpec
from qbench.tasks.contract import Context, Outcome, mean_score
from qbench.tasks.data import Source

LENGTH = 2048
POSITIONS = 256  # rows of the vocabulary that are in fp32 at a time
LOWEST = -65504.0  # of float16: what a masked token's log-probability becomes


@dataclass(frozen=True)
class ReferenceLogits:
    """Log-probabilities of the unquantized model in a .npy file: (windows, length - 1, vocabulary) float16."""

    path: Path
    shape: tuple[int, int, int]

    @classmethod
    def open(cls, path: Path) -> ReferenceLogits:
        """A file that `write` made; StoreError for anything else."""
        try:
            stored = open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be read as reference log-probabilities ({error}); remove it"
            ) from error
        if stored.ndim != 3 or stored.dtype != np.float16:
            raise StoreError(
                f"{path} is {stored.dtype} of shape {stored.shape}, not 3-d float16; remove it"
            )
        return cls(Path(path), stored.shape)

    @classmethod
    def write(
        cls,
        model: Any,
        windows: Tensor,
        path: Path,
        progress: Callable[[float, str], None] | None = None,
        batch_size: int = 1,
    ) -> ReferenceLogits:
        """Run the unquantized model over the windows; the file appears whole or not at all."""

        def fill(part: Path) -> None:
            stored: np.memmap[Any, Any] | None = None
            for index, logits in _logits(model, windows, batch_size):
                if stored is None:
                    shape = (len(windows), *logits.shape)
                    _check_room(part.parent, 2 * math.prod(shape))
                    stored = open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
                for start in range(0, len(logits), POSITIONS):
                    rows = (
                        logits[start : start + POSITIONS].float().log_softmax(-1).clamp_(min=LOWEST)
                    )
                    stored[index, start : start + POSITIONS] = rows.half().cpu().numpy()
                if progress:
                    progress(
                        (index + 1) / len(windows), f"reference  {index + 1}/{len(windows)} windows"
                    )
            if stored is not None:
                stored.flush()

        write_whole(path, fill)
        return cls.open(path)

    def window(self, index: int) -> Iterator[tuple[slice, Tensor]]:
        """The positions of one window in parts, (positions, vocabulary) float16."""
        stored = open_memmap(self.path, mode="r")
        for start in range(0, self.shape[1], POSITIONS):
            part = slice(start, start + POSITIONS)
            yield part, torch.from_numpy(np.array(stored[index, part]))


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"the reference log-probabilities need {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            "ask fewer or shorter windows, or another --out"
        )


@torch.no_grad()
def _logits(model: Any, inputs: Tensor, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    """The model's logits window by window, (length - 1, vocabulary), in the model's dtype and on its device."""
    length = inputs.shape[1]
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and room < length:
        raise ConfigError(
            f"length={length} is more than the model's context of {room} tokens; choose at most {room}"
        )
    device = model.get_input_embeddings().weight.device
    for start in range(0, len(inputs), batch_size):
        found = model(
            input_ids=inputs[start : start + batch_size].to(device), use_cache=False
        ).logits[:, :-1]
        for offset, logits in enumerate(found):
            yield start + offset, logits


@dataclass(frozen=True)
class _Window:
    """What one window says: mean negative log-likelihood, and per position KL and whether the top token agrees.

    Without a reference, kl and agree are empty.
    """

    digest: str
    nll: float
    kl: np.ndarray[Any, Any]
    agree: np.ndarray[Any, Any]


def _measure(context: Context, spec: TaskSpec) -> list[_Window]:
    """One pass over the model for both tasks, kept in the cell's cache."""
    key = ("text", spec.sha256, spec.length, spec.limit, context.reference)
    if key not in context.cache:
        length = spec.length or LENGTH
        inputs = windows(context.source.text("wikitext"), context.tokenizer, length, spec.limit)
        found = []
        for index, logits in _logits(context.model, inputs, context.batch_size):
            _check_reference(context.reference, len(inputs), logits)
            found.append(_window(logits, inputs[index], context.reference, index))
            context.progress(
                (index + 1) / len(inputs), f"{spec.name}  {index + 1}/{len(inputs)} windows"
            )
        context.cache[key] = found
    return context.cache[key]


def _check_reference(reference: ReferenceLogits | None, count: int, logits: Tensor) -> None:
    shape = (count, *logits.shape)
    if reference is not None and reference.shape != shape:
        raise StoreError(
            f"{reference.path} holds (windows, positions, vocabulary) {reference.shape} and the model gives {shape}; "
            "it is of another text, length or model: remove it"
        )


def _window(
    logits: Tensor, tokens: Tensor, reference: ReferenceLogits | None, index: int
) -> _Window:
    targets = tokens[1:].to(logits.device)
    parts = reference.window(index) if reference else _plain_parts(len(logits))
    nll, kl, agree = 0.0, [], []
    for part, stored in parts:
        q = logits[part].float().log_softmax(-1)  # (positions, V)
        nll -= float(q.gather(1, targets[part, None]).double().sum())
        if stored is None:
            continue
        stored = stored.to(q.device)
        p = stored.float().log_softmax(
            -1
        )  # rounding to float16 is no longer a distribution: make it one again
        weight = p.exp()
        kl.append(torch.where(weight > 0, weight * (p - q), 0.0).sum(-1).cpu().numpy())
        best = stored.gather(1, q.argmax(-1, keepdim=True))[:, 0]
        agree.append(
            (best >= stored.amax(-1)).cpu().numpy()
        )  # a tie after rounding is an agreement
    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    empty = np.zeros(0, dtype=np.float32)
    return _Window(
        digest, nll / len(targets), np.concatenate([empty, *kl]), np.concatenate([empty, *agree])
    )


def _plain_parts(positions: int) -> Iterator[tuple[slice, None]]:
    for start in range(0, positions, POSITIONS):
        yield slice(start, start + POSITIONS), None


@dataclass(frozen=True)
class _TextTask:
    kind = "text"

    def spec(
        self,
        source: Source,
        limit: int | None = None,
        num_fewshot: int | None = None,
        length: int | None = None,
        generate: int | None = None,
    ) -> TaskSpec:
        """The first `limit` windows of `length` tokens of the source's text (2048 where not said)."""
        require_at_least("limit", limit)
        require_at_least("length", length, least=2)
        return TaskSpec(
            name=source.task_name(self.name),  # type: ignore[attr-defined]
            data=source.table_name("wikitext"),
            sha256=source.sha256("wikitext"),
            limit=limit,
            length=length or LENGTH,
        )


@dataclass(frozen=True)
class Perplexity(_TextTask):
    """Perplexity per token of WikiText-2 (or of the source's own text)."""

    name = "wikitext"

    def describe(self) -> str:
        """One line."""
        return "perplexity per token on WikiText-2, non-overlapping windows (the GPTQ paper's convention)"

    def evaluate(self, context: Context, spec: TaskSpec) -> Outcome:
        """Scores `perplexity` (standard error by the delta method) and `nll`; one row per window."""
        found = _measure(context, spec)
        nll = mean_score(spec.name, "nll", [window.nll for window in found], higher=False)
        if nll.value > 700:
            raise MethodError(
                f"{spec.name}: exp of the mean nll {nll.value:.4g} overflows; the quantized model is broken"
            )
        value = math.exp(nll.value)
        stderr = None if nll.stderr is None else value * nll.stderr  # d exp(m) = exp(m) dm
        perplexity = nll.model_copy(
            update={"metric": "perplexity", "value": value, "stderr": stderr}
        )
        return Outcome(
            (perplexity, nll),
            [_row(i, window) | {"nll": window.nll} for i, window in enumerate(found)],
        )


@dataclass(frozen=True)
class Divergence(_TextTask):
    """How far the quantized model's predictions are from the unquantized model's."""

    name = "divergence"

    def describe(self) -> str:
        """One line."""
        return "KL divergence and top-1 agreement with the unquantized model, on the windows of wikitext"

    def evaluate(self, context: Context, spec: TaskSpec) -> Outcome:
        """Scores `kl_mean`, `kl_p99` (over tokens) and `top1_agreement`; one row per window."""
        if context.reference is None:
            raise ConfigError(
                f"{spec.name} needs the log-probabilities of the unquantized model; run it through `qbench run`, which "
                "writes them, or leave it out of --tasks"
            )
        rows = []
        tokens = []
        for index, window in enumerate(_measure(context, spec)):
            tokens.append(window.kl)
            values = {
                "kl_mean": float(window.kl.mean(dtype=np.float64)),
                "top1_agreement": float(window.agree.mean()),
            }
            rows.append(_row(index, window) | values)
        mean = mean_score(spec.name, "kl_mean", [row["kl_mean"] for row in rows], higher=False)
        top = mean_score(
            spec.name, "top1_agreement", [row["top1_agreement"] for row in rows], higher=True
        )
        every = np.concatenate(tokens)
        tail = Score(
            task=spec.name,
            metric="kl_p99",
            value=float(np.quantile(every, 0.99)),
            stderr=None,
            n=len(every),
            higher_is_better=False,
        )
        return Outcome((mean, tail, top), rows)


def _row(index: int, window: _Window) -> dict[str, Any]:
    return {"doc_id": index, "filter": "none", "doc_hash": window.digest}
