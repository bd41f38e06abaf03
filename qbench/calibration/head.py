"""The part of a model after its last block, a norm and the head, as a function."""

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

    kind: tuple or list, None where they are bare. length: of the tuple or list.
    """

    kind: type | None = None
    length: int = 1

    @classmethod
    def of(cls, output: Any) -> Returned:
        """The form of this output of a block."""
        if isinstance(output, (tuple, list)):
            return cls(tuple if isinstance(output, tuple) else list, len(output))
        return cls()

    def around(self, hidden: Tensor) -> Any:
        """An output of this form with hidden states (batch, length, width), and else None."""
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
    """A function: the last block's output (batch, length, width) -> logits, on this device.

    returned: how the blocks return their output. dtype: of the matrix products. The function runs
    the whole model with blocks that return the given states. So it names no model family, and also
    does what a model does to its logits. No gradient reaches the model's parameters.
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
    """A context in which all blocks return `output`."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return output

    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the instance attribute; the class's method shows again
