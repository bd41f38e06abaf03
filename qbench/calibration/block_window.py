"""Consecutive blocks as one, so that they are trained together on the output of the last.

Cross-block reconstruction: what the first block does wrong, the second can make up for, and what
matters of the first is what the second makes of it. The windows of CBQ (Ding et al., ICLR 2025,
arXiv:2312.07950) overlap, so that a block is trained more than once. Here they do not, as the
stages of BRECQ (Li et al. 2021, arXiv:2102.05426): training takes as long as block by block, and
what a window gives is final, so that a method keeps nothing from one call to the next. Weights in
training, and what a step keeps for its backward pass, take as many times the memory as there are
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
    """Blocks of a decoder, one behind the other; its children, by their numbers."""

    def __init__(self, blocks: Mapping[int, nn.Module]) -> None:
        super().__init__()
        for number, block in blocks.items():
            self.add_module(str(number), block)

    def forward(self, hidden: Tensor, calls: Sequence[Call]) -> Tensor:
        """The last block's output (batch, length, width).

        hidden: of the first. calls: arguments of each block.
        """
        for block, (args, kwargs) in zip(self.children(), calls, strict=True):
            output = block(hidden, *args, **kwargs)
            hidden = hidden_states(output)
        return hidden

    def parts(self, inputs: BlockInputs) -> Iterator[tuple[str, nn.Module, list[Call]]]:
        """Number and block of each, and the arguments of its calls in the window's inputs."""
        for place, (number, block) in enumerate(self.named_children()):
            yield number, block, [args[0][place] for args, _ in inputs.arguments]

    def by_block(self, result: BlockResult) -> dict[str, BlockResult]:
        """The result of each block, by its number.

        Errors of weights go to their blocks, and all else that was logged to the last, as it is of
        its output.
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
