"""The loss of training: the error of a block's output, and for the last block that of the logits.

What later blocks make of an error cannot be seen when one block at a time is trained. After the
last block there is only a norm and the head, so there the logits can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDE = 4  # every so many tokens' logits are compared: the head is many times a block's size


@dataclass(frozen=True)
class Objective:
    """share * block_loss + weight * divergence of the logits.

    kind: of `block_loss`. logits: the last block's output -> the model's logits; None for every
    other block, whose objective has no divergence.
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
    """Mean squared error, in which a token has the weight r^-p.

    output, target: (batch, length, width); the loss is a scalar, float32. r is the token's mean
    square in units of the median over the batch's targets: the larger one of output and target, and
    at least 1.

    A few tokens of a decoder, often only the first, have activations hundreds of times larger than
    others, and all later tokens attend to them. The kinds are:

    - `mse`, p = 0: such tokens outweigh all others (on SmolLM2-135M, from the twelfth block on).
    - `capped`, p = 1: every token has about the weight that it has for the next norm. But large
      tokens are few, and are forgotten, with what others attend to (the same model at 2 bits).
    - `damped`, p = 1/2, lies between.
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
