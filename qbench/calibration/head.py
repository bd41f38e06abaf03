"""What is behind a decoder's last block, its norm and its head, as a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qbench.calibration.precision import on_device, products_in


@dataclass(frozen=True)
class Returned:
    """How a decoder's blocks return their hidden states: bare, or first in a tuple or a list.

    kind: of sequence, None where they are bare. length: of it.
    """

    kind: type | None = None
    length: int = 1

    @classmethod
    def of(cls, output: Any) -> Returned:
        """As this output of a block has them."""
        if isinstance(output, (tuple, list)):
            return cls(tuple if isinstance(output, tuple) else list, len(output))
        return cls()

    def around(self, hidden: Tensor) -> Any:
        """An output with these hidden states; whatever is behind them is None."""
        if self.kind is None:
            return hidden
        return self.kind([hidden, *[None] * (self.length - 1)])


def head_of(
    model: nn.Module,
    blocks: nn.ModuleList,
    returned: Returned,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[Tensor], Tensor]:
    """Hidden states (batch, length, width) behind the last block -> logits, on this device.

    returned: how the blocks return these. dtype: of the matrix products. The model runs with
    blocks that give these states, whatever they get: so no family is named, and what a model does
    to its logits is done. No gradient reaches its parameters.
    """
    inside = {id(tensor) for tensor in (*blocks.parameters(), *blocks.buffers())}
    values: dict[str, Tensor] = {}

    def logits(hidden: Tensor) -> Tensor:
        # Copied at the first call: a method that does not ask pays nothing.
        if not values:
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if id(tensor) not in inside:
                    values[name] = on_device(tensor.detach(), device, dtype)
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        arguments = {"input_ids": ids, "use_cache": False}
        with giving(blocks, returned.around(hidden)), products_in(dtype, device):
            output = torch.func.functional_call(model, values, (), arguments)
        result: Tensor = output.logits
        return result

    return logits


@contextmanager
def giving(blocks: nn.ModuleList, output: Any) -> Iterator[None]:
    """Blocks that return `output`."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return output

    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the instance attribute; the class's method shows again
