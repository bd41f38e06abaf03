"""The training loop of block reconstruction: it takes steps, judges states, and keeps the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from qbench.calibration.history import History
from qbench.calibration.objective import Objective
from qbench.contracts import BlockInputs, BlockResult
from qbench.errors import MethodError
from qbench.models.blocks import as_kept, linears

if TYPE_CHECKING:
    from qbench.calibration.reconstruction import Reconstruction

Groups = list[dict[str, Any]]  # what an optimizer takes: [{"params": [...], "lr": ...}, ...]


class Trainable(Protocol):
    """The trained form of a whole block."""

    def substitutes(self) -> dict[str, Tensor]:
        """Values to use in place of the block's parameters, by name; differentiable."""

    def export(self) -> BlockResult:
        """The present state as it is stored."""

    def groups(self) -> Groups:
        """Parameters with their learning rates."""


def reconstruct(
    block: nn.Module,
    state: Trainable,
    inputs: BlockInputs,
    targets: list[Tensor],
    recipe: Reconstruction,
) -> BlockResult:
    """Train `state`, and return the best of its exported states; the initialization is one of them.

    targets: what the block gives in full precision, (batch, length, width) per batch.

    After each epoch the state is judged: by the loss of the *exported* block on the held-out
    batches of the quantized stream. So the result is never worse there than the start. The block
    stays as it is. Training stops where the loss is no longer finite. MethodError where the
    initialization's loss is not finite.
    """
    # What the block runs with; `state` overrides some, and no gradient reaches the others.
    fixed = {name: value.detach() for name, value in block.named_parameters()}
    training, judging = split(len(targets), recipe.holdout)
    judge = partial(_judged, block, fixed, inputs, targets, judging)
    best = state.export()
    objective = recipe.objective(inputs, lambda loss: judge(loss, best))
    history = History([], [judge(objective, best)])
    if not math.isfinite(history.judged[0]):
        raise MethodError(
            "the block's loss is not finite before any training; "
            "check the model and the calibration text"
        )
    steps = Steps(state, recipe, objective, len(training), targets[0].device)
    total = recipe.epochs * len(training)
    for epoch in range(recipe.epochs):
        for batch in steps.order(training):
            inputs.progress(len(history.losses) / total, history.line(epoch, recipe.epochs))
            loss = steps.take(block, fixed, inputs, targets[batch], batch)
            history.losses.append(loss)
            if not math.isfinite(loss):
                # The best state was exported before, and is not touched by what went wrong since.
                history.stopped = f"stopped at step {len(history.losses)}: the loss is {loss}"
                return replace(best, log=history.log())
        result = state.export()
        history.judged.append(judge(objective, result))
        stale = epoch + 1 - history.best_epoch  # epochs since the best one
        if stale == 0:
            best = result
        elif recipe.patience and stale >= recipe.patience:
            history.stopped = (
                f"stopped after epoch {epoch + 1}: no improvement for {recipe.patience}"
            )
            break
    return replace(best, log=history.log())


def split(batches: int, holdout: float) -> tuple[list[int], list[int]]:
    """Indices of the batches that train and of those that judge; a single batch does both."""
    judging = min(batches - 1, math.ceil(batches * holdout))  # at least one batch trains
    indices = list(range(batches))
    training = batches - judging
    return indices[:training], indices[training:] or indices


def quantized_parameters(
    block: nn.Module, fixed: Mapping[str, Tensor], result: BlockResult
) -> dict[str, Tensor]:
    """The parameters of a quantized block, by name: the result's, and `fixed` for the rest."""
    layers = linears(block)
    values = {**fixed, **result.parameters}
    for name, weight in result.weights.items():
        values[f"{name}.weight"] = as_kept(layers[name], weight.dequantize())
    return values


@torch.no_grad()
def _judged(
    block: nn.Module,
    fixed: Mapping[str, Tensor],
    inputs: BlockInputs,
    targets: list[Tensor],
    batches: list[int],
    objective: Objective,
    result: BlockResult,
) -> float:
    """The loss of a quantized block on these batches of the quantized stream."""
    values = quantized_parameters(block, fixed, result)
    losses = []
    for batch in batches:
        output = inputs.run(block, inputs.quantized[batch], batch, values)
        losses.append(objective(output, targets[batch]).item())
    return sum(losses) / len(losses)


class Steps:
    """Adam under the recipe's schedule, the order of batches, and the mixing of inputs."""

    def __init__(
        self,
        state: Trainable,
        recipe: Reconstruction,
        objective: Objective,
        batches: int,
        device: torch.device,
    ) -> None:
        """batches: number of the batches that train, each once per epoch."""
        self.state = state
        self.recipe = recipe
        self.objective = objective
        self.taken = 0
        self.optimizer = torch.optim.Adam(state.groups(), fused=True)
        total = max(1, recipe.epochs * batches)  # 0 epochs: the schedule is never stepped
        self.schedule: torch.optim.lr_scheduler.LRScheduler
        if recipe.schedule == "cosine":
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=total)
        else:
            self.schedule = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1)
        # Two generators, of which that of the noise is on the device, where the noise is drawn. So
        # the order of the batches depends neither on the mixing nor on the device.
        self.shuffle = torch.Generator().manual_seed(recipe.seed)
        self.noise = torch.Generator(device).manual_seed(recipe.seed)

    def order(self, batches: list[int]) -> list[int]:
        """The batches of one epoch, in a random order."""
        order = torch.randperm(len(batches), generator=self.shuffle)
        return [batches[i] for i in order.tolist()]

    def mixed(self, inputs: BlockInputs, batch: int) -> Tensor:
        """Hidden states whose elements come from the quantized prefix with probability `mixing`.

        (batch, length, width), of the batch with this index.
        """
        quantized = inputs.quantized[batch]
        full = inputs.full[batch]
        # At both ends nothing need be drawn.
        if self.recipe.mixing == 1:
            return quantized
        if self.recipe.mixing == 0:
            return full
        drawn = torch.rand(full.shape, generator=self.noise, device=full.device)
        return torch.where(drawn < self.recipe.mixing, quantized, full)

    @torch.enable_grad()
    def take(
        self,
        block: nn.Module,
        fixed: Mapping[str, Tensor],
        inputs: BlockInputs,
        target: Tensor,
        batch: int,
    ) -> float:
        """Take one step, and return its loss. Parameters do not change where it is not finite.

        target (batch, length, width): of the batch with this index.
        """
        hidden = self.mixed(inputs, batch)
        output = inputs.run(block, hidden, batch, {**fixed, **self.state.substitutes()})
        loss = self.objective(output, target, self.taken)
        self.taken += 1
        # The device is waited for here, once: what follows runs while the next step is prepared.
        value: float = loss.item()
        if math.isfinite(value):
            loss.backward()
            self.optimizer.step()
            # At once: nothing holds gradients while a state is judged.
            self.optimizer.zero_grad(set_to_none=True)
            self.schedule.step()
        return value
