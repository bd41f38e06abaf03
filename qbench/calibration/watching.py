"""What modules of a block are called with, and what they give, while all batches run through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from torch import nn

from qbench.contracts import BlockInputs

# Takes the module, its positional and its keyword arguments, and its output.
Hook = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]


def watch(block: nn.Module, inputs: BlockInputs, hooks: Iterable[tuple[str, Hook]]) -> None:
    """Run the block on all batches of the quantized stream.

    hooks: names of modules in the block, each with what is called after every call of the module.
    They are taken off again, also where the block fails.
    """
    with ExitStack() as stack:
        for name, hook in hooks:
            module = block.get_submodule(name)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        for batch, hidden in enumerate(inputs.quantized):
            inputs.run(block, hidden, batch)
