"""The unquantized model's log-probabilities in a file, and the pass over windows that gives them.

Log-probabilities and not logits: float16 is then precise where it matters, near 0.
"""

from __future__ import annotations

import hashlib
import json
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

from qbench.calibration.streamed import streamed_logits
from qbench.errors import ConfigError, StoreError
from qbench.files.atomic import write_text, write_whole
from qbench.files.ordinary import json_of, ordinary_text
from qbench.models.paging import is_paged
from qbench.records import TaskSpec

# Positions whose logits are in fp32 at a time: on a CPU few enough for its cache, which takes a
# quarter of the time of a whole window.
POSITIONS = {"cpu": 8, "cuda": 256}
# Tokens whose products are faster together. SmolLM2 in bfloat16 on one Zen 4 core, of windows of
# 192 tokens, by windows at a time: 434 ms a window for 1, 398 for 2, 371 for 4, with equal losses.
TOGETHER = {"cpu": 768}
NOISE_WINDOWS = 4
LOWEST = -65504.0  # of float16: what a masked token's log-probability becomes


def reference_key(spec: TaskSpec) -> tuple[Any, ...]:
    """Where a cell's cache holds the reference of a text that is asked as `spec` says.

    A task may cut the same text otherwise: `ReferenceLogits.tokens` says of which windows it is.
    """
    return ("reference", spec.sha256, spec.length, spec.limit, spec.spread)


@dataclass(frozen=True)
class ReferenceLogits:
    """A .npy file: (windows, length - 1, vocabulary) float16.

    tokens: sha256 of the windows. noise: of some of them, the mean KL in nats of the unquantized
    model from this file, with what float16 has rounded, where its products have other shapes, which
    sum in another order. Both are in a file beside it, and empty without it.
    """

    path: Path
    shape: tuple[int, int, int]
    tokens: str = ""
    noise: tuple[float, ...] = ()

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
        tokens, noise = _read_facts(Path(path))
        return cls(Path(path), stored.shape, tokens, noise)

    @classmethod
    def write(
        cls,
        model: Any,
        windows: Tensor,
        path: Path,
        progress: Callable[[float, str], None] | None = None,
        batch_size: int = 1,
    ) -> ReferenceLogits:
        """Run the unquantized model over the windows (n, length); the file appears whole or not.

        Raises StoreError where it would not fit the disk, ConfigError where the windows do not fit
        the model's context.
        """
        count = len(windows)

        def fill(part: Path) -> None:
            stored: np.memmap[Any, Any] | None = None
            for index, logits in window_logits(model, windows, batch_size):
                if stored is None:
                    shape = (count, *logits.shape)  # (windows, length - 1, vocabulary)
                    _check_room(part.parent, 2 * math.prod(shape))
                    stored = open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
                _store_window(stored, index, logits)
                if progress:
                    progress((index + 1) / count, f"reference  {index + 1}/{count} windows")
            if stored is not None:
                stored.flush()
            # First what is known of the file: without it nothing would say that it is missing.
            facts = {"tokens": digest_of(windows), "noise": cls.open(part)._noise(model, windows)}
            write_text(_facts_path(path), json.dumps(facts) + "\n")

        write_whole(path, fill)
        return cls.open(path)

    def require_tokens(self, windows: Tensor) -> None:
        """StoreError unless these windows (n, length) are its own, as far as it knows them."""
        if self.tokens and self.tokens != digest_of(windows):
            raise StoreError(
                f"{self.path} is of other tokens than the model reads: the two models have "
                "different tokenizers; compare a model with the one that it was made from"
            )

    def _noise(self, model: Any, windows: Tensor) -> list[float]:
        """`noise`, of the first windows without their last fifth."""
        count = windows.shape[1]
        kept = max(2, count - count // 5)
        noise = []
        for index, logits in window_logits(model, windows[:NOISE_WINDOWS, :kept], 1):
            stored = self.read(index).to(logits.device)
            total = 0.0
            for part in parts_of(len(logits), logits.device):
                q = logits[part].float().log_softmax(-1)
                p = stored[: len(logits)][part].float()
                total += float(divergence(p, q).double().sum())
            noise.append(total / len(logits))
        return noise

    def read(self, index: int) -> Tensor:
        """One window, (length - 1, vocabulary) float16."""
        stored = open_memmap(self.path, mode="r")
        return torch.from_numpy(np.array(stored[index]))


def digest_of(tokens: Tensor) -> str:
    """sha256 of tokens (any shape) int64."""
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """(positions,): KL(P || Q) in nats, of log-probabilities (positions, V), P's of 16 bits."""
    return divergences(p, q)[0]


def divergences(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """(positions,) each: KL(P || Q) and KL(Q || P) in nats, of log-probabilities (positions, V).

    P's have 16 bits. Neither is quite a distribution, P by its rounding and Q by that of a float32
    log-softmax, which is off by up to 1e-5: with Z the sums of their exponentials, about 1,
    KL(P || Q) = (sum of exp p (p - q)) / Z_p - ln Z_p + ln Z_q, and the other way round.
    """
    p_weight, q_weight = p.exp(), q.exp()
    p_total, q_total = p_weight.sum(-1), q_weight.sum(-1)
    difference = p - q
    forward = torch.linalg.vecdot(p_weight, difference)
    backward = -torch.linalg.vecdot(q_weight, difference)
    if not bool((forward + backward).isfinite().all()):  # what has no weight is nothing: 0 ln 0 = 0
        forward = torch.where(p_weight > 0, p_weight * difference, 0.0).sum(-1)
        backward = -torch.where(q_weight > 0, q_weight * difference, 0.0).sum(-1)
    normalization = q_total.log() - p_total.log()
    return forward / p_total + normalization, backward / q_total - normalization


def parts_of(positions: int, device: torch.device) -> Iterator[slice]:
    """The positions of a window in parts, whose float32 copies fit cache or memory."""
    step = POSITIONS.get(device.type, POSITIONS["cuda"])
    for start in range(0, positions, step):
        yield slice(start, start + step)


@torch.no_grad()
def window_logits(model: Any, inputs: Tensor, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    """The model's logits by window, (length - 1, vocabulary), in its dtype and on its device.

    inputs: (n, length) tokens. batch_size: windows at a time, at least: short ones are taken
    together up to TOGETHER tokens. Raises ConfigError where the model's context is shorter.
    """
    length = inputs.shape[1]
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and room < length:
        raise ConfigError(
            f"length={length} is more than the model's context of {room} tokens; "
            f"choose at most {room}"
        )
    batches = streamed_logits if is_paged(model) else _batch_logits
    index = 0
    for logits in batches(model, inputs, batch_size):  # (batch, length, V)
        for of_window in logits[:, :-1]:
            yield index, of_window
            index += 1


def _batch_logits(model: Any, inputs: Tensor, batch_size: int) -> Iterator[Tensor]:
    device = model.get_input_embeddings().weight.device
    batch_size = max(batch_size, TOGETHER.get(device.type, 0) // inputs.shape[1])
    for batch in inputs.split(batch_size):
        yield model(input_ids=batch.to(device), use_cache=False).logits


def _store_window(stored: np.memmap[Any, Any], index: int, logits: Tensor) -> None:
    """logits: (length - 1, vocabulary), turned into log-probabilities part by part."""
    for part in parts_of(len(logits), logits.device):
        log_probabilities = logits[part].float().log_softmax(-1).clamp_(min=LOWEST)
        stored[index, part] = log_probabilities.half().cpu().numpy()


def _facts_path(path: Path) -> Path:
    return path.with_suffix(".facts.json")


def _read_facts(path: Path) -> tuple[str, tuple[float, ...]]:
    """`tokens` and `noise`; StoreError where their file is damaged, nothing where there is none."""
    place = _facts_path(path)
    if not place.is_file():
        return "", ()
    try:
        facts = json_of(ordinary_text(place))
        return str(facts["tokens"]), tuple(float(value) for value in facts["noise"])
    except (StoreError, TypeError, ValueError, KeyError) as error:
        raise StoreError(f"{place} cannot be read ({error}); remove it and {path}") from error


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"the reference log-probabilities need {needed / 1e9:.1f} GB and {folder} has "
            f"{free / 1e9:.1f} GB free; ask fewer or shorter windows, or another --out"
        )
