"""A model's logits, for batches that go through its blocks together: each block is read once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qbench.calibration.head import giving
from qbench.calibration.spool import keep
from qbench.calibration.walk import enter, forward, returned_by
from qbench.models.blocks import decoder_blocks
from qbench.models.paging import resident


@torch.no_grad()
def streamed_logits(model: Any, tokens: Tensor, batch_size: int) -> Iterator[Tensor]:
    """For every batch, the logits (batch, length, vocabulary) of `model(input_ids=batch)`.

    tokens: (samples, length) token ids. The operations are the same, on the same tensors. Memory
    has to hold one block, and the hidden states of all batches, unless `spooling` puts these into
    files.
    """
    _, blocks = decoder_blocks(model)
    device = model.get_input_embeddings().weight.device
    returned = returned_by(model, blocks, tokens)
    streams = enter(model, blocks, tokens, batch_size, device)
    for index, block in enumerate(blocks):
        with resident(block):
            for stream in streams:
                stream.hidden = keep(forward(block, index, stream))
    for batch, stream in zip(tokens.split(batch_size), streams, strict=True):
        with giving(blocks, returned.around(stream.hidden)):
            output = model(input_ids=batch.to(device), use_cache=False)
        yield output.logits
