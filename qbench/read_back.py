"""An exported model is read again by the program that it is for: the logits have to be the same."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbench.checkpoint.folder import load_checkpoint
from qbench.checkpoint.packed_linear import unpack
from qbench.errors import QbenchError, StoreError, reason_of
from qbench.files.atomic import in_the_name_of
from qbench.models.loading import load_weights
from qbench.models.pretrained import quiet
from qbench.models.source import find_model

BY_DEFAULT = 2_000_000_000  # bytes of what was written, up to which it is read back unasked
TOLERANCE = 1e-4  # relative, in norm: experts are summed in another order
_LENGTH = 24  # tokens of the probe


@contextmanager
def unproven(path: Path) -> Iterator[Path]:
    """A place beside `path` for what is to be read back before it is put there.

    Nothing stays behind; of a process that is killed, what `files.atomic.leftovers` knows.
    StoreError where the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}); choose another place"
        ) from None
    try:
        with in_the_name_of(path, room / path.name):
            yield room / path.name
    finally:
        shutil.rmtree(room, ignore_errors=True)


def prove(source: Path, written: Path, target: str, dtype: str) -> None:
    """StoreError where an export reads back as another model than its source.

    target: `dense` is read by transformers, `gptq` and `qbench` by `load_checkpoint`, since
    transformers needs a package for GPTQ, and `gguf` by `load_weights`, which puts right what
    transformers leaves out of such a file. dtype: that of the export.
    """
    expected = _as_written(source, target, dtype)
    tokens = torch.arange(_LENGTH)[None] * 7919 % expected.config.get_text_config().vocab_size
    logits = _logits(expected, tokens)
    if not torch.isfinite(logits).all():
        raise StoreError(
            f"{source} itself gives logits that are not finite, so that no export can be "
            "compared with it; nothing was written: quantize again, or write it with --no-verify"
        )
    if target == "gguf":
        read = _gguf(written)
    elif target == "dense":
        read = _by_transformers(written)
    else:
        read = load_checkpoint(written, "float32", packed=False).model
    difference = _difference(_logits(read, tokens), logits)
    if not difference <= TOLERANCE:
        raise StoreError(
            f"{source} written as {target} reads back as another model (relative difference of the "
            f"logits {difference:.2g}); nothing was written: please report this"
        )


def _as_written(source: Path, target: str, dtype: str) -> Any:
    """The model that an export holds, in float32.

    What is not quantized is rounded to `dtype` in all of them; a quantized weight in a dense one.
    """
    model = load_checkpoint(source, dtype, packed=target != "dense").model
    unpack(model, torch.float32)
    return model.float()


def _gguf(file: Path) -> Any:
    try:
        return load_weights(find_model(str(file)), "float32")
    except QbenchError as error:
        raise StoreError(
            f"the export cannot be read back ({error}); nothing was written: please report this"
        ) from None


def _by_transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # of any kind, where a tensor has not the name or shape it expects
        raise StoreError(
            f"transformers cannot read the export ({reason_of(error)}); nothing was written: "
            "please report this"
        ) from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise StoreError(
            f"transformers misses {len(missing)} tensors of the export ({missing[0]}); nothing was "
            "written: please report this"
        )
    return model.eval()


@torch.no_grad()
def _logits(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens).logits.double()


def _difference(logits: Tensor, expected: Tensor) -> float:
    if logits.shape != expected.shape:
        return float("inf")
    return float((logits - expected).norm() / expected.norm())
