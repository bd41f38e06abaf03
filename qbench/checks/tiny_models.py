"""Tiny random decoders whose blocks differ in kind, and one block of them with its inputs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from qbench.calibration.walk import walk_blocks
from qbench.contracts import BlockInputs, BlockResult
from qbench.models.blocks import as_kept, linears
from qbench.models.experts import unfuse_experts

VOCABULARY = 64
GROUP_SIZE = 16  # divides the inputs of every linear layer
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
GPT2_SHAPE = {"vocab_size": VOCABULARY, "n_embd": 32, "n_head": 2, "n_layer": 1}
FAMILIES: dict[str, tuple[Any, Any, dict[str, int]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, SHAPE | {"num_hidden_layers": 2}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2_SHAPE | {"bos_token_id": 0, "eos_token_id": 0}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, SHAPE | {"num_hidden_layers": 1}),
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig,
        SHAPE | {"num_hidden_layers": 1, "num_local_experts": 3, "num_experts_per_tok": 2},
    ),
}
WHAT = {"llama": "Llama", "gpt2": "GPT-2 (Conv1D)", "qwen2": "Qwen2 (biases)", "mixtral": "Mixtral"}


def tiny_model(family: str) -> nn.Module:
    """A random model of a family of `FAMILIES`, the same every time, its experts taken apart.

    The weights are four times as large as at initialization, so that rounding them shows.
    """
    kind, config, shape = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config(**shape))
        for parameter in model.parameters():
            parameter.data *= 4
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # they are zero at initialization
                parameter.data.normal_(std=0.1)
    model.eval()
    unfuse_experts(model)
    return model


def tokens(samples: int, length: int) -> Tensor:
    """(samples, length) random token ids, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCABULARY, (samples, length), generator=generator)


@dataclass(frozen=True)
class TinyBlock:
    """The first block of a tiny model: what it calibrates on, and what it is judged on.

    inputs, targets: of all batches; the first `calibrating` of them are given to a method, the
    others are held out.
    """

    block: nn.Module
    inputs: BlockInputs
    targets: list[Tensor]
    calibrating: int

    def quantized_by(self, method: Any, scheme: Any) -> BlockResult:
        """What the method makes of the block, from the calibration batches alone."""
        kept = slice(0, self.calibrating)
        inputs = BlockInputs(
            self.inputs.quantized[kept], self.inputs.full[kept], self.inputs.arguments[kept]
        )
        with torch.no_grad():
            result: BlockResult = method.quantize_block(
                self.block, inputs, self.targets[kept], scheme
            )
        return result

    @torch.no_grad()
    def held_out_loss(self, result: BlockResult) -> float:
        """Mean squared error of the quantized block's output on the batches that were held out."""
        values = {name: value.detach() for name, value in self.block.named_parameters()}
        values.update(result.parameters)
        layers = linears(self.block)
        for name, weight in result.weights.items():
            values[f"{name}.weight"] = as_kept(layers[name], weight.dequantize())
        losses = []
        for batch in range(self.calibrating, len(self.targets)):
            output = self.inputs.run(self.block, self.inputs.quantized[batch], batch, values)
            losses.append((output - self.targets[batch]).square().mean().item())
        return sum(losses) / len(losses)


class _FirstBlock(Exception):
    """Ends the walk after the first block."""


def tiny_block(family: str) -> TinyBlock:
    """The first block of a family: 12 batches of 4 sequences to calibrate on, and 4 held out."""
    seen: list[TinyBlock] = []

    def visit(name: str, block: nn.Module, inputs: BlockInputs, targets: list[Tensor]) -> None:
        seen.append(TinyBlock(block, inputs, targets, calibrating=12))
        raise _FirstBlock

    with suppress(_FirstBlock):
        walk_blocks(
            tiny_model(family),
            tokens(64, 16),
            visit,
            torch.device("cpu"),
            lambda fraction, text: None,
            batch_size=4,
            dtype=torch.float32,
        )
    return seen[0]
