"""One token through a model of the Llama kind: eight kernels a block, as serving programs have it.

transformers computes a block in about thirty. Here products that read the same x are one, and what
stands between them is one kernel each (`qbench.kernels.gpu.cuda.one_row`). Packed and dense models
are treated alike. A model is of this kind if its modules have the names below and its logits come
out the same, which whoever makes an `OneToken` has to see to; Llama, Mistral and Qwen2 are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qbench.errors import ConfigError
from qbench.kernels.gpu.cuda.one_row import OneRow
from qbench.kernels.gpu.cuda.plain_row import PlainRow
from qbench.latency.joined import joined

MODEL = {"embed_tokens", "layers", "norm", "rotary_emb"}
BLOCK = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class OneToken:
    """Writes the token after the one in `token`, over the cache of its prompt."""

    def __init__(
        self,
        model: Any,
        cache: Sequence[Any],
        token: Tensor,
        written: Tensor,
        count: Tensor,
        offset: int,
        row: OneRow | PlainRow,
    ) -> None:
        """model: a transformers model for causal language modelling. cache: its static layers.

        token int64 (1, 1); written int64 (1, tokens); count (1,) of tokens written. The place of
        `token` is count + offset. row: what computes all but the products. ConfigError where the
        model is of another kind.
        """
        inner, head = _parts(model)
        self._row = row
        self._token, self._written, self._count = token, written, count
        self._offset = offset
        self._embedding = inner.embed_tokens.weight
        dtype = self._embedding.dtype
        self._rotary = _rotary(inner.rotary_emb, self._embedding, cache[0].keys.shape[2])
        self._blocks = []
        for block, layer in zip(inner.layers, cache, strict=True):
            self._blocks.append(_Block(block, layer, dtype))
        self._norm = _norm(inner.norm, dtype)
        self._head = joined([head], dtype)

    def write(self) -> None:
        """Write the next token, and count it."""
        self._row.keep_largest(self.logits(), self._token, self._written, self._count)

    def logits(self) -> Tensor:
        """(1, vocabulary), of the place of the token, which is put into the cache."""
        row = self._row
        position = (self._count, self._offset)
        x = nn.functional.embedding(self._token[0], self._embedding)
        update = None
        for block in self._blocks:
            x, y = row.norm(x, update, *block.before, block.qkv.planes)
            y = row.attention(
                *(block.qkv.run(y), self._rotary, block.cache, *position, block.scale),
                block.output.planes,
            )
            update = block.output.run(y)
            x, y = row.norm(x, update, *block.between, block.gate_up.planes)
            y = row.gated(block.gate_up.run(y), block.down.planes)
            update = block.down.run(y)
        _, y = row.norm(x, update, *self._norm, self._head.planes)
        return self._head.run(y)


class _Block:
    """The products of a block, its norms (weight, epsilon), and its part of the cache."""

    def __init__(self, block: Any, layer: Any, dtype: torch.dtype) -> None:
        attention = block.self_attn
        mlp = block.mlp
        self.qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.output = joined([attention.o_proj], dtype)
        self.gate_up = joined([mlp.gate_proj, mlp.up_proj], dtype)
        self.down = joined([mlp.down_proj], dtype)
        self.before = _norm(block.input_layernorm, dtype)
        self.between = _norm(block.post_attention_layernorm, dtype)
        self.cache = layer.keys, layer.values
        self.scale = float(attention.scaling)


def _parts(model: Any) -> tuple[Any, Any]:
    """The model without its head, and the head. ConfigError where it is not of the Llama kind."""
    _require(_children(model) == {"model", "lm_head"}, "model and lm_head", model)
    inner = model.model
    _require(_children(inner) == MODEL, ", ".join(sorted(MODEL)), inner)
    for block in inner.layers:
        _require(_children(block) == BLOCK, ", ".join(sorted(BLOCK)), block)
        _require(_children(block.self_attn) == {*ATTENTION}, ", ".join(ATTENTION), block.self_attn)
        _require(_children(block.mlp) == {*MLP}, ", ".join(MLP), block.mlp)
    return inner, model.lm_head


def _children(module: Any) -> set[str]:
    """The names of its modules that hold tensors."""
    return {
        name for name, child in module.named_children() if any(True for _ in _tensors_of(child))
    }


def _tensors_of(module: Any) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _require(right: bool, expected: str, module: Any) -> None:
    if not right:
        raise ConfigError(
            f"a {type(module).__name__} has {', '.join(sorted(_children(module)))}; models of the "
            f"Llama kind have {expected} there and nothing else"
        )


def _norm(module: Any, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Weight and epsilon of a norm. ConfigError where it has none, or not in the model's dtype."""
    epsilon = getattr(module, "variance_epsilon", None)
    if not isinstance(epsilon, float) or module.weight.dtype != dtype:
        raise ConfigError(
            f"a {type(module).__name__} is no norm as Llama has it: variance_epsilon is {epsilon}, "
            f"and its weight {module.weight.dtype} in a model in {dtype}"
        )
    return module.weight, epsilon


def _rotary(embedding: Any, like: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (room, n) of all places. ConfigError where they depend on the others."""
    places = torch.arange(room, device=like.device)[None]
    cosines, sines = embedding(like, places)
    for index in (1, room - 1):
        alone = embedding(like, places[:, index : index + 1])
        for table, row in zip((cosines, sines), alone, strict=True):
            if not torch.equal(table[0, index], row[0, 0]):
                raise ConfigError(
                    f"the angles of a {type(embedding).__name__} depend on the number of places"
                )
    return cosines[0].contiguous(), sines[0].contiguous()
