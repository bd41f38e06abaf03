"""What training lowers: the error of a block's output, and for the last block that of the logits.

A block's output is seen by the blocks behind it, which training one block at a time cannot see.
Behind the last block there is the head alone, a norm and a product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDE = 4  # every so many tokens' logits are compared: the head is many times a block's size


@dataclass(frozen=True)
class Objective:
    """block_loss, and beside it the divergence of the logits where there is a head.

    kind: of `block_loss`. logits: hidden states behind the last block -> the model's logits, None
    for every other block. weight, share: what the divergence and the block's loss are multiplied
    by.
    """

    kind: str
    logits: Callable[[Tensor], Tensor] | None = None
    weight: float = 0.0
    share: float = 1.0

    def __call__(self, output: Tensor, target: Tensor, offset: int = 0) -> Tensor:
        """The loss, a scalar, float32, of output and target (batch, length, width).

        offset: the first token whose logits are compared, modulo `STRIDE`.
        """
        loss = block_loss(output, target, self.kind)
        if self.logits is None or not self.weight:
            return loss
        part = slice(offset % min(STRIDE, output.shape[1]), None, STRIDE)
        seen = divergence(self.logits(output[:, part]), self.logits(target[:, part]))
        return self.share * loss + self.weight * seen


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Mean KL(reference || logits) over tokens, in nats, of logits (..., vocabulary); float32."""
    log_p = reference.detach().float().log_softmax(-1)
    log_q = logits.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def block_loss(output: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean squared error, where a token of mean square r times the median's counts r^-p.

    output, target: (batch, length, width); the loss is a scalar, float32. r is at least 1, and the
    larger of that in the output and in the target; the median is of the batch's targets. A few
    tokens of a decoder, often only the first, carry activations hundreds of times larger, which all
    later tokens attend to. p = 0, `mse`: they drown all others (on SmolLM2-135M from the twelfth
    block on). p = 1, `capped`: the norm that follows sees them so, but as one token of hundreds
    they are forgotten, and with them what the others attend to (the same model at 2 bits). p = 1/2,
    `damped`, lies between.
    """
    error = (output.float() - target.float()).square().mean(-1)  # (batch, length)
    if kind != "mse":
        # Detached: the weights of the tokens are constants, so that the block cannot lower its loss
        # by making its output larger.
        target_size = target.detach().float().square().mean(-1)  # (batch, length)
        output_size = output.detach().float().square().mean(-1)
        size = torch.maximum(target_size, output_size).clamp_min(1e-30)  # not to divide by 0
        factor = (target_size.median() / size).clamp_max(1)  # 1 / r
        if kind == "damped":
            factor = factor.sqrt()
        error = error * factor
    return error.mean()
