"""A Llama of random packed weights, made on the GPU, and its dense twin: the same numbers.

So what an 8B model costs can be measured where there is no such model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qbench.checkpoint.packed_linear import pack
from qbench.formats import Binary

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
BLOCKS = "model.layers."


def random_twins(
    sizes: Mapping[str, int], bits: int, group_size: int, device: str, dtype: torch.dtype
) -> tuple[Any, Any]:
    """(packed, dense): Llamas with these sizes whose blocks' linear layers hold the same weights.

    dtype: of what is not packed. The weights are drawn from generators of their own.
    """
    packed = _llama(sizes, device, dtype)
    dense = _llama(sizes, device, dtype)
    dense.load_state_dict(packed.state_dict())
    weights = {}
    for seed, (name, layer) in enumerate(packed.named_modules()):
        if name.startswith(BLOCKS) and isinstance(layer, torch.nn.Linear):
            out, columns = layer.weight.shape
            weight = random_weight(out, columns, bits, group_size, seed, device)
            weights[name] = weight
            dense.get_submodule(name).weight.data.copy_(weight.dequantize())
    pack(packed, weights)
    return packed, dense


def random_weight(
    out: int, columns: int, bits: int, group_size: int, seed: int, device: str
) -> Binary:
    """A binary-coded weight (out, in) on the device: entries of variance about 1/in."""
    generator = torch.Generator(device).manual_seed(seed)
    planes = torch.randint(
        0, 256, (bits, out, columns // 8), generator=generator, dtype=torch.uint8, device=device
    )
    groups = columns // group_size
    spread = 0.5 + torch.rand(out, groups, 1, generator=generator, device=device)
    halves = 0.5 ** torch.arange(bits, device=device)
    alpha = spread * halves / columns**0.5 * 0.8
    shift = 0.1 * torch.randn(out, groups, generator=generator, device=device) / columns**0.5
    return Binary(planes, alpha.half(), shift.half(), columns, group_size)


def _llama(sizes: Mapping[str, int], device: str, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**sizes, max_position_embeddings=8192, tie_word_embeddings=False)
    with torch.device(device), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
