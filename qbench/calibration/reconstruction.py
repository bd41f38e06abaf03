"""Block reconstruction: train quantized weights so that a block's output stays as it was.

FlexRound, UniQuanF and their relatives share this (BRECQ, Li et al. 2021, arXiv:2102.05426), with
inputs mixed element by element from both streams (QDrop, Wei et al. 2022, arXiv:2203.05740). A
method provides the parameterization of one weight. This module has the parameters that all such
methods have, and initializes a block; `training.py` has the optimizer, the batches, and the choice
of the state that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from qbench.calibration.block_window import BlockWindow
from qbench.calibration.input_statistics import input_statistics, no_statistics
from qbench.calibration.layer_error import relative_error
from qbench.calibration.objective import Objective
from qbench.calibration.spool import keep
from qbench.calibration.training import Groups, quantized_parameters, reconstruct
from qbench.contracts import BlockInputs, BlockResult, LinearStats, Scheme, WeightFormat
from qbench.errors import ConfigError, require_at_least
from qbench.models.blocks import as_kept, linears, read_weight


class TrainedWeight(nn.Module):
    """One linear layer's weight in training.

    Its parameters are float32 masters, rounded to what is stored in `export`. products: the dtype
    of the matrix products that take its weight, where it is another.
    """

    products: torch.dtype | None = None

    def forward(self) -> Tensor:
        """(out, in): the quantized weight, differentiable in the parameters.

        It is float32, or rounded to the dtype of the products already, which saves memory traffic.
        """
        raise NotImplementedError

    def export(self) -> WeightFormat:
        """The present state as it is stored."""
        raise NotImplementedError

    def groups(self) -> Groups:
        """Parameters with their learning rates."""
        raise NotImplementedError


def straight_through(numbers: Tensor, stored: Tensor) -> Tensor:
    """The numbers as they are stored, in the same shape, with the gradient of the numbers."""
    return numbers + (stored - numbers).detach()


class Weights:
    """A block whose linear layers are trained weights, each on its own."""

    def __init__(
        self,
        block: nn.Module,
        weights: Mapping[str, TrainedWeight],
        products: torch.dtype | None = None,
    ) -> None:
        """weights: by the name of the layer within the block. products: as they have it."""
        self.layers = linears(block)
        self.weights = weights
        for weight in weights.values():
            weight.products = products

    def substitutes(self) -> dict[str, Tensor]:
        """`<layer>.weight` of every layer, as the layer keeps it (Conv1D has it transposed)."""
        values = {}
        for name, weight in self.weights.items():
            values[f"{name}.weight"] = as_kept(self.layers[name], weight())
        return values

    def export(self) -> BlockResult:
        """The quantized weights."""
        return BlockResult({name: weight.export() for name, weight in self.weights.items()})

    def groups(self) -> Groups:
        """Those of all weights, one after the other."""
        groups: Groups = []
        for weight in self.weights.values():
            groups += weight.groups()
        return groups


@dataclass(frozen=True)
class Reconstruction:
    """What trained methods share; a method derives from it and implements `prepare`.

    epochs: passes over the calibration batches; 0 keeps the initialization.
    batch_size: sequences per step.
    mixing: probability with which an element of the input comes from the quantized prefix, and not
        from the full-precision model.
    loss: `mse`; or `damped` or `capped`, where tokens larger than the median count less
        (`block_loss`).
    head: weight of the logits' divergence, beside the loss of the last block with weight 1, each in
        units of its value at the start.
    holdout: share of the batches that judge the states and are not trained on. A single batch does
        both.
    patience: training stops after so many epochs without improvement, 0 for never.
    window: so many consecutive blocks are trained together, on the output of the last
        (`block_window.py`).
    seed: of the order of the batches and of the mixing.
    """

    trains: ClassVar[Literal[True]] = True
    # Of the learning rates: down to zero, or as they are.
    schedule: ClassVar[Literal["cosine", "constant"]] = "cosine"

    epochs: int = 4
    batch_size: int = 4
    mixing: float = 1.0
    loss: Literal["damped", "capped", "mse"] = "damped"
    head: float = 1.0
    holdout: float = 0.125
    patience: int = 0
    window: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        self.refuse_below(0, "epochs", "patience", "mixing", "holdout", "head")
        rates = [field.name for field in fields(self) if field.name.startswith("lr")]
        self.refuse_below(0, *rates)
        self.refuse_below(1, "batch_size", "window")
        if self.mixing > 1 or self.holdout >= 1:
            raise ConfigError(
                f"mixing={self.mixing}, holdout={self.holdout}: "
                "give shares, mixing up to 1 and holdout below 1"
            )

    def refuse_below(self, least: int, *names: str) -> None:
        """ConfigError naming the first of these parameters that is smaller; None is not."""
        for name in names:
            require_at_least(name, getattr(self, name), least)

    def training_tokens(self, tokens: int) -> int:
        """Tokens that pass forward and backward where `tokens` calibrate, to estimate times."""
        return math.ceil(tokens * (1 - self.holdout) * self.epochs)

    def objective(self, inputs: BlockInputs, at_start: Callable[[Objective], float]) -> Objective:
        """What is lowered in the block that has these inputs.

        at_start: the value that an objective has at the initialization.
        """
        if inputs.logits is None or not self.head:
            return Objective(self.loss)
        block = at_start(Objective(self.loss))
        seen = at_start(Objective(self.loss, inputs.logits, 1.0)) - block
        if not (math.isfinite(block) and math.isfinite(seen) and seen > 0):
            return Objective(self.loss)
        # At the start it has the value of the block's loss, in whose units it is recorded.
        share = 1 / (1 + self.head)
        return Objective(self.loss, inputs.logits, share * self.head * block / seen, share)

    def prepare(self, weight: Tensor, scheme: Scheme, stats: LinearStats) -> TrainedWeight:
        """(out, in) -> its parameterization at the initialization. Must not change `weight`.

        stats: of the layer's input in the quantized stream; layers with the same input share one
        object. A layer that no token reaches has zeros and the count 0.
        """
        raise NotImplementedError

    def quantize_block(
        self, block: nn.Module, inputs: BlockInputs, targets: list[Tensor], scheme: Scheme
    ) -> BlockResult:
        """Initialize every linear layer, and train them together on the block's output.

        targets: what the block gives in full precision, (batch, length, width) per batch.
        MethodError where its loss is not finite at the start.
        """
        weights = self._prepared(block, inputs, scheme)
        result = reconstruct(block, Weights(block, weights, inputs.dtype), inputs, targets, self)
        errors = {}
        layers = linears(block)
        for name, weight in result.weights.items():
            errors[name] = relative_error(read_weight(layers[name]), weight.dequantize())
        return replace(result, log={**result.log, "weight_errors": errors})

    def _prepared(
        self, block: nn.Module, inputs: BlockInputs, scheme: Scheme
    ) -> dict[str, TrainedWeight]:
        """Every linear layer at its initialization.

        In a window block after block: each sees what those before it give as they are initialized.
        """
        if not isinstance(block, BlockWindow):
            return self._initialized(block, inputs, scheme)
        weights = {}
        hidden = inputs.quantized
        for number, part, arguments in block.parts(inputs):
            own = replace(inputs, quantized=hidden, arguments=arguments)
            asked = scheme.of_block({name: f"{number}.{name}" for name in linears(part)})
            started = self._initialized(part, own, asked)
            for name, weight in started.items():
                weights[f"{number}.{name}"] = weight
            hidden = _outputs(part, own, Weights(part, started).export())
        return weights

    def _initialized(
        self, block: nn.Module, inputs: BlockInputs, scheme: Scheme
    ) -> dict[str, TrainedWeight]:
        """Every linear layer of one block that is to be quantized, at its initialization.

        No statistics outlive this call: none is in memory while the block trains.
        """
        inputs.progress(0.0, "collecting second moments")
        statistics = input_statistics(block, inputs)
        weights = {}
        layers = linears(block)
        for name, asked in scheme.of_layers(layers).items():
            inputs.progress(0.0, f"initializing {name}")
            stats = statistics.pop(name, None) or no_statistics(layers[name])
            weights[name] = self.prepare(read_weight(layers[name]), asked, stats)
        return weights


@torch.no_grad()
def _outputs(block: nn.Module, inputs: BlockInputs, result: BlockResult) -> list[Tensor]:
    """What the quantized block gives for the quantized stream, batch by batch."""
    fixed = {name: value.detach() for name, value in block.named_parameters()}
    values = quantized_parameters(block, fixed, result)
    outputs = []
    for batch, hidden in enumerate(inputs.quantized):
        outputs.append(keep(inputs.run(block, hidden, batch, values)))
    return outputs
