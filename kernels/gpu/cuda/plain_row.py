"""What stands between the products of one token, in plain torch, on any device and in any dtype.

The definition of what the kernels of `qbench.kernels.gpu.cuda.one_row` compute: a model of the
Llama kind, operator by operator as transformers has it.
"""

from __future__ import annotations

import torch
from torch import Tensor


class PlainRow:
    """Has the methods of `OneRow`, and takes no notice of `planes`."""

    def norm(
        self,
        x: Tensor,
        update: Tensor | None,
        weight: Tensor,
        epsilon: float,
        planes: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """x, update (1, n) or None, weight (n,) -> x + update, and its norm (1, n)."""
        total = x if update is None else x + update
        wide = total.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        return total, weight * normed.to(x.dtype)

    def gated(self, both: Tensor, planes: bool = False) -> Tensor:
        """both (1, 2 n), gate before up -> silu(gate) up (1, n)."""
        gate, up = both.chunk(2, 1)
        return torch.nn.functional.silu(gate) * up

    def attention(
        self,
        qkv: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        count: Tensor,
        offset: int,
        scale: float,
        planes: bool = False,
    ) -> Tensor:
        """One new token, whose key and value are put into the cache -> outputs (1, heads n).

        qkv (1, (heads + 2 key_heads) n). rotary: cosines and sines (room, n). cache: keys and
        values (1, key_heads, room, n). count int64 (1,): the token's place is count + offset.
        """
        keys, values = cache
        _, key_heads, room, size = keys.shape
        place = count + offset
        cosines, sines = (table[place] for table in rotary)  # (1, n) each
        rows = qkv.view(-1, size)
        query, key, value = rows.split((len(rows) - 2 * key_heads, key_heads, key_heads))
        keys.index_copy_(2, place, _turned(key, cosines, sines)[None, :, None])
        values.index_copy_(2, place, value[None, :, None])
        # (key_heads, share, n): the heads that share a key head
        queries = _turned(query, cosines, sines).view(key_heads, -1, size).float()
        scores = queries @ keys[0].float().mT * scale  # (key_heads, share, room)
        later = torch.arange(room, device=qkv.device) > place
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        return (weights @ values[0].float()).to(qkv.dtype).view(1, -1)

    def keep_largest(self, logits: Tensor, token: Tensor, written: Tensor, count: Tensor) -> None:
        """The place of the largest logit goes to `token` and `written`, and is counted.

        logits (1, n) -> token int64 (1, 1); written int64 (1, tokens) at count[0]; count (1,).
        """
        token.copy_(logits.argmax(-1, keepdim=True))
        written.index_copy_(1, count, token)
        count.add_(1)


def _turned(rows: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """rows (heads, n), turned by the angles (1, n) of their place."""
    first, second = rows.chunk(2, 1)
    return rows * cosines + torch.cat((-second, first), 1) * sines
