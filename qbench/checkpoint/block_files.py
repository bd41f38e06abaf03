"""A quantized model written block by block: a file for each block that is finished, then the rest.

The folder is the one that `save_checkpoint` (`qbench.checkpoint.write_folder`) makes of the same
model, but for which file a tensor lies in. It appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qbench.checkpoint.config import stored_tensors
from qbench.checkpoint.write_folder import (
    entry_of,
    unquantized_tensors,
    write_findings,
    write_settings,
    written_whole,
)
from qbench.contracts import WeightFormat
from qbench.files.safetensors_file import write_tensors
from qbench.files.written_folder import require_writable, write_index
from qbench.kernels.description import moved
from qbench.models.blocks import decoder_blocks, linears
from qbench.models.paging import before_leaving

Writing = Callable[[], AbstractContextManager[None]]


class BlockFiles:
    """The files of a model that is being quantized, in a folder that nobody reads yet."""

    def __init__(self, folder: Path, writing: Writing = nullcontext) -> None:
        """writing: makes a context in which every file is written."""
        self._folder = folder
        self._writing = writing
        self._files = 0
        self._hashes: dict[str, str] = {}
        self._tensors: dict[str, Tensor] = {}  # all that is written, without its data

    def take(self, model: Any, weights: dict[str, WeightFormat]) -> None:
        """From now on write each paged block of the model when it leaves memory, once it is done.

        weights: where the quantized weights will be, by full name. A block is done when those of
        all of its layers are there; what is written keeps its place there, without its data.
        """
        prefix, blocks = decoder_blocks(model)
        self._files = len(blocks) + 1
        for index, block in enumerate(blocks):
            name = f"{prefix}.{index}"
            before_leaving(block, partial(self._write_block, name, block, weights))

    def finish(
        self,
        model: Any,
        tokenizer: Any,
        weights: Mapping[str, WeightFormat],
        manifest: Mapping[str, Any],
        log: Mapping[str, Any],
    ) -> None:
        """Write what is outside the blocks, and all files beside the tensors.

        weights: of layers outside the blocks with their data.
        """
        rest = unquantized_tensors(model, weights)
        inside = f"{decoder_blocks(model)[0]}."
        for name, weight in weights.items():
            if not name.startswith(inside):  # the head
                for part, tensor in stored_tensors(weight).items():
                    rest[f"{name}.{part}"] = tensor
        self._write({name: rest[name] for name in rest.keys() - self._tensors.keys()})
        entry = entry_of(model, weights, manifest)
        generation = getattr(model, "generation_config", None)
        with self._writing():
            write_settings(self._folder, model.config, tokenizer, self._tensors, entry, generation)
            write_findings(self._folder, entry, weights, log)
            write_index(self._folder, self._hashes)

    def _write_block(self, name: str, block: nn.Module, weights: dict[str, WeightFormat]) -> None:
        own: dict[str, WeightFormat] = {}
        for layer in linears(block):
            weight = weights.get(f"{name}.{layer}")
            if weight is None:  # the block was only looked at
                return
            own[layer] = weight
        tensors: dict[str, Tensor] = {}
        for layer, weight in own.items():
            for part, tensor in stored_tensors(weight).items():
                tensors[f"{name}.{layer}.{part}"] = tensor
        if tensors.keys() <= self._tensors.keys():  # it was written before
            return
        for key, tensor in unquantized_tensors(block, own).items():
            tensors[f"{name}.{key}"] = tensor
        self._write(tensors)
        for layer, weight in own.items():
            weights[f"{name}.{layer}"] = moved(weight, "meta")

    def _write(self, tensors: dict[str, Tensor]) -> None:
        file = f"model-{len(self._hashes) + 1:05d}-of-{self._files:05d}.safetensors"
        with self._writing():
            self._hashes[file] = write_tensors(self._folder / file, tensors)
        for name, tensor in tensors.items():
            self._tensors[name] = tensor.to("meta")


def write_block_files(
    folder: Path, work: Callable[[BlockFiles], None], writing: Writing = nullcontext
) -> Path:
    """Let `work` fill and finish the files of a model, and put them at `folder`.

    writing: makes a context in which every file is written. Whatever it raises, nothing stays
    behind. StoreError where the disk refuses, and where something is there that qbench has not
    written.
    """
    require_writable(folder)
    return written_whole(folder, lambda part: work(BlockFiles(part, writing)))
