"""Consecutive blocks as one, so that they are trained together on the output of the last.

Cross-block reconstruction: the second block can make up for errors of the first, and errors of the
first matter only as far as they change the output of the second. The windows of CBQ (Ding et al.,
ICLR 2025, arXiv:2312.07950) overlap, so that a block is trained more than once. Here they do not,
like the stages of BRECQ (Li et al. 2021, arXiv:2102.05426): training takes as long as block by
block, and the result of a window is final, so that a method keeps nothing from one call to the
next. The memory of weights in training, and of a step's backward pass, grows with the number of
blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from qbench.contracts import BlockInputs, BlockResult, hidden_states

Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a block beside the hidden states


class BlockWindow(nn.Module):
    """Consecutive blocks of a decoder, which are its children under their numbers."""

    def __init__(self, blocks: Mapping[int, nn.Module]) -> None:
        super().__init__()
        for number, block in blocks.items():
            self.add_module(str(number), block)

    def forward(self, hidden: Tensor, calls: Sequence[Call]) -> Tensor:
        """The last block's output (batch, length, width).

        hidden: the input of the first. calls: arguments of each block.
        """
        for block, (args, kwargs) in zip(self.children(), calls, strict=True):
            output = block(hidden, *args, **kwargs)
            hidden = hidden_states(output)
        return hidden

    def parts(self, inputs: BlockInputs) -> Iterator[tuple[str, nn.Module, list[Call]]]:
        """Number and block of each, and the arguments of its calls in the window's inputs."""
        for index, (number, block) in enumerate(self.named_children()):
            yield number, block, [args[0][index] for args, _ in inputs.arguments]

    def by_block(self, result: BlockResult) -> dict[str, BlockResult]:
        """The result of each block, by its number.

        The errors of weights go into the logs of their blocks, and everything else into that of the
        last block, whose output was judged.
        """
        log = dict(result.log)
        errors = log.pop("weight_errors", {})
        results = {}
        for number, _ in self.named_children():
            own: dict[str, Any] = {}
            if errors:
                own["weight_errors"] = _of_child(errors, number)
            weights = _of_child(result.weights, number)
            results[number] = BlockResult(weights, _of_child(result.parameters, number), own)
        results[number] = replace(results[number], log={**log, **own})
        return results


def _of_child(entries: Mapping[str, Any], number: str) -> dict[str, Any]:
    """Entries whose names begin with `number`, by the rest of their names."""
    start = f"{number}."
    return {
        name.removeprefix(start): value for name, value in entries.items() if name.startswith(start)
    }
