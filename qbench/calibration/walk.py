"""The calibration walk: hidden states go block by block through the model that is quantized.

It is sequential: each layer gets its inputs from layers that are already quantized. Memory has to
hold one block, the hidden states of all calibration tokens, and the tensors that one block keeps
between two of its linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from greenlet import greenlet
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from qbench.calibration.block_window import BlockWindow, Call
from qbench.calibration.head import Returned, head_of
from qbench.calibration.input_statistics import InputStatistics, no_statistics
from qbench.calibration.passes import in_passes
from qbench.calibration.precision import on_device, products_in
from qbench.calibration.spool import is_full, keep
from qbench.contracts import BlockInputs, LinearStats, hidden_states
from qbench.models.blocks import decoder_blocks, linears
from qbench.models.paging import resident

PROBED = 8  # tokens that show what a block returns
Visit = Callable[[str, nn.Module, LinearStats], None]
VisitBlock = Callable[[str, nn.Module, BlockInputs, list[Tensor]], None]
Progress = Callable[[float, str], None]


@dataclass
class Stream:
    """One batch on its way through the model.

    hidden: (batch, length, width). arguments: of each block's call, without the hidden states.
    """

    hidden: Tensor
    arguments: list[Call]


@torch.no_grad()
def walk_linears(
    model: nn.Module,
    tokens: Tensor,
    visit: Visit,
    device: torch.device,
    progress: Progress,
    batch_size: int,
    dtype: torch.dtype,
) -> None:
    """Visit every linear layer of the decoder in the order of execution, with its statistics.

    tokens: (samples, length) token ids. visit(name, layer, stats) may replace the layer's weight;
    all later layers get inputs that were computed with it. A layer that no token reaches (an
    expert) is visited last, with count 0. dtype: of the matrix products. MethodError naming the
    layer whose inputs are not finite.
    """
    prefix, blocks = decoder_blocks(model)
    streams = enter(model, blocks, tokens, batch_size, device, dtype)
    for index, block in enumerate(blocks):
        progress(index / len(blocks), f"block {index + 1}/{len(blocks)}")
        names: dict[Any, str] = {}  # by layer: the layer's full name
        for name, layer in linears(block).items():
            names[layer] = f"{prefix}.{index}.{name}"
        with _at_work(block, device, dtype), products_in(dtype, device):
            if is_full():
                run = partial(forward, block, index)
                outputs = in_passes(streams, run, names, visit)
            else:
                outputs = lock_step(block, index, streams, names, visit)
        for stream, hidden in zip(streams, outputs, strict=True):
            stream.hidden = keep(hidden)


@torch.no_grad()
def walk_blocks(
    model: nn.Module,
    tokens: Tensor,
    visit: VisitBlock,
    device: torch.device,
    progress: Progress,
    batch_size: int,
    dtype: torch.dtype,
    window: int = 1,
) -> None:
    """Visit every block with its inputs in the quantized and in the full-precision model.

    tokens: (samples, length) token ids. visit(name, block, inputs, targets) may replace the block's
    weights; the quantized stream goes through the block after the visit. window: so many
    consecutive blocks are visited as one `BlockWindow`, with a name such as `model.layers.0-1`; a
    single block that is left at the end is visited as it is.
    """
    prefix, blocks = decoder_blocks(model)
    streams = enter(model, blocks, tokens, batch_size, device, dtype)
    full = [stream.hidden for stream in streams]  # before the first block both streams are the same
    for start in range(0, len(blocks), window):
        end = min(start + window, len(blocks))
        block, name = _visited(blocks, start, end)
        label = f"block {end}/{len(blocks)}"

        # Bound as defaults: a closure would read the loop's variables when it is called.
        def report(
            fraction: float, text: str, start: int = start, end: int = end, label: str = label
        ) -> None:
            progress((start + fraction * (end - start)) / len(blocks), f"{label} {text}")

        report(0.0, "")
        arguments = [_call(stream.arguments[start:end]) for stream in streams]
        inputs = BlockInputs([stream.hidden for stream in streams], full, arguments, dtype, report)
        if end == len(blocks):
            returned = returned_by(model, blocks, tokens)
            inputs = replace(inputs, logits=head_of(model, blocks, returned, device, dtype))
        with _at_work(block, device, dtype):
            # Before the visit the block's weights are still the model's own.
            targets = [keep(inputs.run(block, hidden, batch)) for batch, hidden in enumerate(full)]
            visit(f"{prefix}.{name}", block, inputs, targets)
            # The visit may have replaced weights: the quantized stream goes on through the new
            # ones.
            for batch, stream in enumerate(streams):
                stream.hidden = keep(inputs.run(block, stream.hidden, batch))
        full = targets


def _visited(blocks: nn.ModuleList, start: int, end: int) -> tuple[nn.Module, str]:
    """The block, or the window of blocks, from `start` to before `end`, and its number."""
    if end - start == 1:
        return blocks[start], str(start)
    members = {index: blocks[index] for index in range(start, end)}
    return BlockWindow(members), f"{start}-{end - 1}"


def _call(calls: list[Call]) -> Call:
    """The arguments of a block or window, from those of its blocks."""
    return calls[0] if len(calls) == 1 else ((calls,), {})


@contextmanager
def _at_work(block: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """One block at a time is on the device, in the dtype that `on_device` says, and then goes back.

    Its values are copied back into the memory that they came from, in their own dtypes: to take
    new memory is slow.
    """
    with resident(block):
        homes = [(tensor, tensor.data) for tensor in (*block.parameters(), *block.buffers())]
        for tensor, home in homes:
            tensor.data = on_device(home, device, dtype)
        yield
        for tensor, home in homes:
            if tensor.data_ptr() != home.data_ptr():
                tensor.data = home.copy_(tensor.data)


def enter(
    model: nn.Module,
    blocks: nn.ModuleList,
    tokens: Tensor,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> list[Stream]:
    """Run everything before the first block, and record the arguments of each block's call.

    The blocks are passed over (they return their input), so this is cheap, and right for models
    whose blocks get different masks or position embeddings. What is recorded goes to the device, as
    `on_device` puts it there. dtype: of the matrix products of the blocks.
    """
    streams = []
    home = device_of(model)
    returned = returned_by(model, blocks, tokens)

    def moved(copies: dict[Tensor, Tensor], leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        # Blocks share masks and position embeddings, and share the copies on the device, too.
        if leaf not in copies:
            copies[leaf] = on_device(leaf, device, dtype)
        return copies[leaf]

    for batch in tokens.split(batch_size):
        with _recorded(blocks, returned) as (calls, _), suppress(_AllRecorded):
            model(input_ids=batch.to(home), use_cache=False)
        # The first block's input is the stream; it was passed on, so all blocks have the same.
        first_args, _ = calls[0]
        hidden = first_args[0]
        arguments = [(args[1:], kwargs) for args, kwargs in calls]
        hidden, arguments = tree_map(partial(moved, {}), (hidden, arguments))
        streams.append(Stream(keep(hidden), arguments))
    return streams


def returned_by(model: nn.Module, blocks: nn.ModuleList, tokens: Tensor) -> Returned:
    """How the blocks return their output, found by running the first one on a few tokens."""
    home = device_of(model)
    with _recorded(blocks, None) as (_, probe), suppress(_AllRecorded):
        model(input_ids=tokens[:1, :PROBED].to(home), use_cache=False)
    return probe[0] or Returned()


def device_of(model: Any) -> torch.device:
    """The device of a model's embedding, which takes the tokens."""
    device: torch.device = model.get_input_embeddings().weight.device
    return device


class _AllRecorded(Exception):
    """The last block has been called."""


@contextmanager
def _recorded(
    blocks: nn.ModuleList, returned: Returned | None
) -> Iterator[tuple[list[Any], list[Returned | None]]]:
    """A context in which blocks record their calls, and return their input as their output.

    returned: the form of the output; None finds it out on the first call. Yields the calls, (args,
    kwargs) each with the hidden states first in args, and `returned` in a list of one.
    """
    calls: list[Any] = []
    probe = [returned]
    originals = [block.forward for block in blocks]

    def passing(block: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            # Models call their blocks in both ways; recorded calls have it first in args.
            if "hidden_states" in kwargs:
                args = (kwargs.pop("hidden_states"), *args)
            form = probe[0]
            if form is None:  # the only time that a block is really run here
                with resident(block):
                    form = Returned.of(original(*args, **kwargs))
                probe[0] = form
            calls.append((args, kwargs))
            if len(calls) == len(blocks):
                # With blocks passed over, the head would be the dearest part of it all.
                raise _AllRecorded
            return form.around(args[0])

        return forward

    try:
        for block, original in zip(blocks, originals, strict=True):
            block.forward = passing(block, original)
        yield calls, probe
    finally:
        for block in blocks:
            del block.forward  # the instance attribute; the class's method shows again


def lock_step(
    block: nn.Module, index: int, streams: list[Stream], names: dict[Any, str], visit: Visit
) -> list[Tensor]:
    """Run one block on every stream; all of them pause at each linear layer until it is visited.

    Each stream's forward pass is a coroutine that stops before a linear layer. When all have
    arrived, the layer's statistics are complete; it is visited, and they go on. So one pass over
    the block is enough for every layer to get inputs from quantized layers.
    """
    order = list(names)
    unvisited = set(names)

    def pause(layer: Any, args: tuple[Any, ...]) -> None:
        """Hand the layer and its input to the loop below, until that switches back."""
        # A layer that was visited is quantized already; a second call of it just runs.
        if layer in unvisited:
            greenlet.getcurrent().parent.switch((layer, args[0]))

    hooks = [layer.register_forward_pre_hook(pause) for layer in names]
    runs = [greenlet(partial(forward, block, index, stream)) for stream in streams]
    statistics = InputStatistics()
    try:
        # Of each run, (layer, input) while it is paused, and the block's output once it is dead.
        states = [run.switch() for run in runs]
        while waiting := _waiting(runs, states):
            # Experts: not every stream reaches every layer. The first in the order goes first, so
            # that its streams can still join those that wait further on.
            layer = min(waiting, key=order.index)
            arrived = waiting[layer]
            stats = statistics.of([states[i][1] for i in arrived], names[layer])
            visit(names[layer], layer, stats)
            # Before any run goes on: from here the hook lets all of them pass.
            unvisited.remove(layer)
            for i in arrived:
                states[i] = runs[i].switch()
    finally:
        for hook in hooks:
            hook.remove()
    for layer in order:
        if layer in unvisited:
            visit(names[layer], layer, no_statistics(layer))
    return states


def _waiting(runs: list[greenlet], states: list[Any]) -> dict[Any, list[int]]:
    """By layer, the indices of the runs that are paused before it. states: see `lock_step`."""
    waiting: dict[Any, list[int]] = {}
    for i, run in enumerate(runs):
        if not run.dead:
            layer, _ = states[i]
            waiting.setdefault(layer, []).append(i)
    return waiting


def forward(block: nn.Module, index: int, stream: Stream) -> Tensor:
    """The output (batch, length, width) of the block of this index for a stream."""
    args, kwargs = stream.arguments[index]
    return hidden_states(block(stream.hidden, *args, **kwargs))
