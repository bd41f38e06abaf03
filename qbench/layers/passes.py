"""Windows of text that go through a model from any of its blocks on, and how far it has diverged.

What comes before a block need not run again for every layer of it. The blocks' arguments are those
that the model itself gives them (`qbench.calibration.walk`), so no family is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qbench.calibration.head import head_of
from qbench.calibration.walk import enter, returned_by
from qbench.contracts import hidden_states
from qbench.models.blocks import decoder_blocks
from qbench.tasks.reference import divergence, parts_of

Hidden = list[Tensor]  # (batch, length, width) of each batch


class Passes:
    """One model on some windows (int64, (windows, length)), on its own device.

    blocks: the decoder's. start: the hidden states before the first of them.
    """

    def __init__(self, model: Any, windows: Tensor, batch_size: int) -> None:
        """Run what is before the first block, and record the blocks' arguments."""
        _, self.blocks = decoder_blocks(model)
        weight = model.get_input_embeddings().weight
        streams = enter(model, self.blocks, windows, batch_size, weight.device)
        self.start: Hidden = [stream.hidden for stream in streams]
        self._arguments = [stream.arguments for stream in streams]
        returned = returned_by(model, self.blocks, windows)
        self._head = head_of(model, self.blocks, returned, weight.device, weight.dtype)

    @torch.no_grad()
    def through(self, index: int, hidden: Hidden) -> Hidden:
        """The states behind a block."""
        states = []
        for batch, state in enumerate(hidden):
            args, kwargs = self._arguments[batch][index]
            output = self.blocks[index](state, *args, **kwargs)
            states.append(hidden_states(output))
        return states

    @torch.no_grad()
    def logits(self, index: int, hidden: Hidden) -> Hidden:
        """(batch, length - 1, vocabulary) of each batch, from the states before a block."""
        for place in range(index, len(self.blocks)):
            hidden = self.through(place, hidden)
        return [self._head(state)[:, :-1] for state in hidden]


class Reference:
    """The unquantized model's log-probabilities, in float16 in memory."""

    def __init__(self, passes: Passes) -> None:
        """Run the model that others are held against."""
        self._windows: list[Tensor] = []
        for logits in passes.logits(0, passes.start):
            for window in logits:
                self._windows.append(window.float().log_softmax(-1).half().cpu())

    def divergences(self, logits: Sequence[Tensor]) -> NDArray[np.float64]:
        """(windows,): the mean KL(P || Q) of every window, in nats, P of the reference."""
        windows = [window for batch in logits for window in batch]
        means = []
        for stored, window in zip(self._windows, windows, strict=True):
            total = 0.0
            for part in parts_of(len(window), window.device):
                q = window[part].float().log_softmax(-1)
                p = stored[part].to(window.device).float()
                total += float(divergence(p, q).double().sum())
            means.append(total / len(window))
        return np.array(means)


class Errors:
    """Squared errors of layers' outputs on the inputs that the unquantized model gives them."""

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._sums: dict[str, list[float]] = {}

    def watch(self, name: str, layer: nn.Module, other: nn.Module) -> Any:
        """Note what `other` makes of everything that goes through `layer`; gives the hook."""
        sums = self._sums.setdefault(name, [0.0, 0.0])

        def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            error = other(*args) - output
            sums[0] += float(error.double().square().sum())
            sums[1] += float(output.double().square().sum())

        return layer.register_forward_hook(note)

    def of(self, name: str) -> float | None:
        """Relative to the output's own square; None where nothing went through."""
        error, size = self._sums.get(name, [0.0, 0.0])
        return error / size if size else None
