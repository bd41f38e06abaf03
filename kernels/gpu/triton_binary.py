"""Y = X W^T for binary-coded and uniform W on GPUs, in Triton, with the layouts of `triton_layout`.

_skinny  Few rows of X. Per group and plane one matrix product of the signs, which are made of bits
         by one multiplication and one logical instruction for two weights, and one multiplication
         of the sum by the scale:
           y = sum_g [ sum_p alpha_gp (c_gp . x_g) + shift_g (1 . x_g) ]
         Signs are exact in 16 bits and sums are float32, so nothing is rounded but y.
_large   More rows. The weights are dequantized in registers in the dtype of x, two at a time: every
         scale and partial sum is rounded to it, where a dense layer in that dtype rounds the weight
         once. Sums of products are float32.
_dense   Writes these weights out, for batches so large that a dense product is worth the traffic.
_reduce  Sums the parts of the inputs (split-K) in a fixed order and adds the bias. There are no
         atomics, so that results do not vary.

W is the first operand of each product (Y^T = W X^T), since on Hopper only that one may come from
registers. No program waits for another, none allocates, and the workspace's size depends on shapes
alone, so that CUDA graphs can capture it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _bits(words, block, p: tl.constexpr, n, N, K: tl.constexpr, P: tl.constexpr):
    """Plane p of rows n, words `block` -> (BN, KB, 16) int32.

    Bits s and 16 + s of a word come to the signs of two 16-bit numbers.
    """
    live = (n < N)[:, None] & (block < K // 32)[None, :]
    word = tl.load(words + (block[None, :] * P + p) * N + n[:, None], live, 0)  # (BN, KB)
    # 2^(15 - s) by way of a float's exponent, which no compiler turns into a shift: multiplication
    # has another pipe
    power = ((142 - tl.arange(0, 16)) << 23).to(tl.float32, bitcast=True).to(tl.int32)
    return word[:, :, None] * power[None, None, :]


@triton.jit
def _halves(pairs, HALF: tl.constexpr):
    """(BN, KB, 16) int32, two 16-bit numbers each -> (BN, 32 KB)."""
    both = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16))  # (BN, KB, 16, 2)
    return tl.reshape(both, (pairs.shape[0], 32 * pairs.shape[1])).to(HALF, bitcast=True)


@triton.jit
def _signs(bits, signs, exponent: tl.constexpr, HALF: tl.constexpr):
    """(BN, KB, 16) int32 -> (BN, 32 KB): 2^exponent where the bit is set, else its negative.

    The mask `signs`, 0x80008000, is an argument of the kernels: as a constant beside the pattern,
    another one, it costs a move for each logical instruction.
    """
    biased: tl.constexpr = (exponent + 127) << 7 if HALF is tl.bfloat16 else (exponent + 15) << 10
    negative: tl.constexpr = 0x8000 | biased
    pattern: tl.constexpr = (negative << 16 | negative) - 2**32
    return _halves((bits & signs) ^ pattern, HALF)


@triton.jit
def _pairs(scale, HALF: tl.constexpr):
    """Each number twice in an int32, as two of HALF."""
    half = scale.to(HALF).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return half | (half << 16)


@triton.jit
def _spread(scale, KB: tl.constexpr, HALF: tl.constexpr):
    """(BN, 1 or KB) -> (BN, 32 KB)."""
    return _halves(tl.broadcast_to(_pairs(scale, HALF)[:, :, None], (scale.shape[0], KB, 16)), HALF)


@triton.jit
def _weights(
    words, alpha, shift, signs, chunk, n, N, K: tl.constexpr, GROUP: tl.constexpr, P: tl.constexpr,
    UNIFORM: tl.constexpr, DOT: tl.constexpr, HALF: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows n, inputs chunk * BK .. -> the weights (BN, BK), of type DOT and computed in it."""
    KB: tl.constexpr = BK // 32
    GROUPS: tl.constexpr = (
        1 if GROUP % BK == 0 or GROUP == K else KB
    )  # one scale for the chunk, or one for each word
    block = chunk * KB + tl.arange(0, KB)
    group = (chunk * BK + tl.arange(0, GROUPS) * 32) // GROUP
    live = (n < N)[:, None] & (group < K // GROUP)[None, :]
    for p in tl.static_range(P - 1, -1, -1):  # the smallest first, which loses least
        bits = _bits(words, block, p, n, N, K, P)
        if UNIFORM:
            plane = _signs(bits, signs, P - 2 - p, HALF).to(DOT)
        else:
            a = tl.load(alpha + (group[None, :] * P + p) * N + n[:, None], live, 0.0)
            plane = _halves((bits & signs) ^ _pairs(-a, HALF)[:, :, None], HALF).to(DOT)
        if p == P - 1:
            W = plane
        else:
            W += plane
    if shift is not None:
        W += _spread(tl.load(shift + group[None, :] * N + n[:, None], live, 0.0), KB, HALF).to(DOT)
    if UNIFORM:
        W *= _spread(tl.load(alpha + group[None, :] * N + n[:, None], live, 0.0), KB, HALF).to(DOT)
    return W


@triton.jit
def _inputs(x, chunk, m, M, K: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr):
    """(BK, BM): inputs chunk * BK .. of the rows m, zero beyond either."""
    k = chunk * BK + tl.arange(0, BK)
    return tl.load(x + m[None, :] * K + k[:, None], (k < K)[:, None] & (m < M)[None, :], 0.0).to(
        DOT
    )


@triton.jit
def _scales(alpha, shift, group, n, N, K: tl.constexpr, GROUP: tl.constexpr, A: tl.constexpr):
    """The scales of one group for the rows n, (BN,) each: A times alpha, and the shift if any."""
    live = n < tl.where(group < K // GROUP, N, 0)
    scales = ()
    for p in tl.static_range(A):
        scales = scales + (tl.load(alpha + (group * A + p) * N + n, live, 0.0),)  # noqa: RUF005
    if shift is not None:
        scales = scales + (tl.load(shift + group * N + n, live, 0.0),)  # noqa: RUF005
    return scales


@triton.jit
def _store(y, bias, acc, n, m, M, N):
    """acc (BN, BM) -> y[part, m, n], with the bias where there is one."""
    if bias is not None:
        acc += tl.load(bias + n, n < N, 0.0).to(tl.float32)[:, None]
    at = (tl.program_id(2) * M + m[None, :]) * N + n[:, None]
    tl.store(y + at, acc.to(y.dtype.element_ty), (n < N)[:, None] & (m < M)[None, :])


@triton.jit(do_not_specialize=["M"])
def _skinny(
    x, words, alpha, shift, bias, y, M, N, signs,
    K: tl.constexpr, GROUP: tl.constexpr, P: tl.constexpr, UNIFORM: tl.constexpr,
    DOT: tl.constexpr, HALF: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """x (M, K) -> y (SPLIT, M, N); BK divides GROUP, or there is one group."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    A: tl.constexpr = 1 if UNIFORM else P
    each: tl.constexpr = triton.cdiv(triton.cdiv(K, BK), SPLIT)
    first = tl.program_id(2) * each
    acc = tl.zeros((BN, BM), tl.float32)
    scales = _scales(alpha, shift, first * BK // GROUP, n, N, K, GROUP, A)
    for chunk in range(first, tl.minimum(first + each, triton.cdiv(K, BK))):
        following = _scales(
            alpha, shift, (chunk + 1) * BK // GROUP, n, N, K, GROUP, A
        )  # arrives during the products
        X = _inputs(x, chunk, m, M, K, BK, DOT)
        dots = tl.zeros((BN, BM), tl.float32)
        for p in tl.static_range(P):
            bits = _bits(words, chunk * (BK // 32) + tl.arange(0, BK // 32), p, n, N, K, P)
            C = _signs(bits, signs, P - 2 - p if UNIFORM else 0, HALF).to(DOT)
            if UNIFORM:  # all planes share one sum
                dots = tl.dot(C, X, dots, input_precision="ieee")
            else:
                acc += scales[p].to(tl.float32)[:, None] * tl.dot(C, X, input_precision="ieee")
        if shift is not None:
            sums = tl.dot(tl.full((BN, BK), 1.0, DOT), X, input_precision="ieee")
            if UNIFORM:
                dots += scales[A].to(tl.float32)[:, None] * sums
            else:
                acc += scales[A].to(tl.float32)[:, None] * sums
        if UNIFORM:
            acc += scales[0].to(tl.float32)[:, None] * dots
        scales = following
    _store(y, bias, acc, n, m, M, N)


@triton.jit(do_not_specialize=["M"])
def _large(
    x, words, alpha, shift, bias, y, M, N, signs,
    K: tl.constexpr, GROUP: tl.constexpr, P: tl.constexpr, UNIFORM: tl.constexpr,
    DOT: tl.constexpr, HALF: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """x (M, K) -> y (SPLIT, M, N)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    each: tl.constexpr = triton.cdiv(triton.cdiv(K, BK), SPLIT)
    first = tl.program_id(2) * each
    acc = tl.zeros((BN, BM), tl.float32)
    for chunk in range(first, tl.minimum(first + each, triton.cdiv(K, BK))):
        X = _inputs(x, chunk, m, M, K, BK, DOT)
        W = _weights(words, alpha, shift, signs, chunk, n, N, K, GROUP, P, UNIFORM, DOT, HALF, BK)
        # The sum is read here, so that Triton waits for the product. It would else make the next
        # weights in registers that products in flight still read (triton-lang/triton#9433).
        acc = tl.dot(W, X, acc, input_precision="ieee") + 0.0
    _store(y, bias, acc, n, m, M, N)


@triton.jit
def _dense(
    words, alpha, shift, dense, N, signs, K: tl.constexpr, GROUP: tl.constexpr, P: tl.constexpr,
    UNIFORM: tl.constexpr, DOT: tl.constexpr, HALF: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """-> dense (N, K)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    W = _weights(
        words, alpha, shift, signs, tl.program_id(1), n, N, K, GROUP, P, UNIFORM, DOT, HALF, BK
    )
    tl.store(
        dense + n.to(tl.int64)[:, None] * K + k[None, :],
        W.to(HALF),
        (n < N)[:, None] & (k < K)[None, :],
    )


@triton.jit
def _reduce(parts, bias, y, size, N, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """parts (SPLIT, M, N) float32 -> y (M, N), size = M N."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(parts + part * size + at, at < size, 0.0)
    if bias is not None:
        total += tl.load(bias + at % N, at < size, 0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), at < size)
