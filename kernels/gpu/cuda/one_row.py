"""What stands between the products of one token, each as one kernel (normed.cu, gated.cu, ..).

`qbench.kernels.gpu.cuda.plain_row` says what each of them computes. One that is followed by a
product of bits writes x as that reads it, so that nothing prepares it.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from qbench.errors import ConfigError
from qbench.kernels.gpu.cuda.bit_serial import X_PLANES, Prepared
from qbench.kernels.gpu.cuda.launch import Function, function
from qbench.kernels.gpu.cuda.layout import CHUNK

THREADS = 256
ATTENTION_THREADS = 512
HEADS = (8, 16, 32, 64, 128, 256)  # sizes of a head that are served
BLOCK = 128  # inputs that share a scale: a head of this size is written as planes
MOST_PLACES = 4096  # of the cache, each with a score in shared memory

Output = Tensor | Prepared
Arguments = tuple[Tensor | int | float | None, ...]


class OneRow:
    """The kernels for float16 or bfloat16."""

    def norm(
        self,
        x: Tensor,
        update: Tensor | None,
        weight: Tensor,
        epsilon: float,
        planes: bool = False,
    ) -> tuple[Tensor, Output]:
        """x, update (1, n) or None, weight (n,) -> x + update, and its norm (1, n).

        n: a multiple of 8. planes: whether products of bits read the norm.
        """
        length = x.shape[1]
        total = x if update is None else torch.empty_like(x)
        output = _Output(x, length, planes)
        arguments = (
            *(x, update, weight, None if update is None else total, *output.pointers),
            *(length, epsilon),
        )
        _launch("normed", x, output.chunks, arguments)
        return total, output.result

    def gated(self, both: Tensor, planes: bool = False) -> Output:
        """both (1, 2 n), gate before up -> silu(gate) up (1, n)."""
        length = both.shape[1] // 2
        output = _Output(both, length, planes)
        _launch("gated", both, output.chunks, (both, *output.pointers, length))
        return output.result

    def attention(
        self,
        qkv: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        count: Tensor,
        offset: int,
        scale: float,
        planes: bool = False,
    ) -> Output:
        """One new token, whose key and value are put into the cache -> outputs (1, heads n).

        qkv (1, (heads + 2 key_heads) n). rotary: cosines and sines (room, n). cache: keys and
        values (1, key_heads, room, n), contiguous. count int64 (1,): the token's place is
        count + offset. ConfigError for a head or a cache that is not served.
        """
        keys, values = cache
        _, key_heads, room, size = keys.shape
        if size not in HEADS or room > MOST_PLACES:
            raise ConfigError(
                f"attention is not served for heads of {size} and {room} places; heads of "
                f"{', '.join(map(str, HEADS))} and up to {MOST_PLACES} places are"
            )
        heads = qkv.shape[1] // size - 2 * key_heads
        output = _Output(qkv, heads * size, planes and size == BLOCK)
        arguments = (
            *(qkv, *rotary, keys, values, count, *output.pointers),
            *(heads, key_heads, room, offset, scale),
        )
        grid, block = (heads, 1, 1), (ATTENTION_THREADS, 1, 1)
        _function("attention", qkv, size).launch(grid, block, arguments, 4 * room, dependent=True)
        return output.result

    def keep_largest(self, logits: Tensor, token: Tensor, written: Tensor, count: Tensor) -> None:
        """The place of the largest logit goes to `token` and `written`, and is counted.

        logits (1, n) -> token int64 (1, 1); written int64 (1, tokens) at count[0]; count (1,).
        """
        arguments = (logits, token, written, count, logits.shape[1], written.shape[1])
        grid, block = (1, 1, 1), (1024, 1, 1)
        _function("largest", logits).launch(grid, block, arguments, dependent=True)


class _Output:
    """Where a kernel's row goes: y, or planes of bits. pointers: of y, planes and blocks."""

    def __init__(self, x: Tensor, length: int, planes: bool) -> None:
        self.chunks = -(-length // CHUNK)
        self.result: Output
        self.pointers: tuple[Tensor | None, Tensor | None, Tensor | None]
        if planes:
            # zeros where an odd number of blocks leaves half a chunk that no kernel writes
            make = x.new_zeros if length % CHUNK else x.new_empty
            words = make(1, self.chunks, 32, 2, X_PLANES // 8, dtype=torch.int32)
            blocks = make(1, self.chunks, 2, 8, dtype=torch.float32)
            self.result = Prepared(words, blocks)
            self.pointers = (None, words, blocks)
        else:
            y = x.new_empty(1, length)
            self.result = y
            self.pointers = (y, None, None)


def _launch(name: str, x: Tensor, blocks: int, arguments: Arguments) -> None:
    _function(name, x).launch((blocks, 1, 1), (THREADS, 1, 1), arguments, dependent=True)


def _function(name: str, x: Tensor, head: int = 0) -> Function:
    return _functions(name, x.dtype == torch.bfloat16, head, x.get_device())


@cache
def _functions(name: str, bfloat16: bool, head: int, device: int) -> Function:
    macros = {"BF16": int(bfloat16), "X_PLANES": X_PLANES}
    if head:
        macros["HEAD"] = head
    return function(f"{name}.cu", name, macros, device)
