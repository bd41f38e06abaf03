"""How much an error of each linear layer changes the logits, by moments of inputs and gradients.

An error dy of a layer's output changes the model's distribution by a divergence of about
dy^T F dy / 2, F = E[g g^T], g the gradient of the log-probability of a token that is drawn from the
model itself (the Fisher matrix). With y = W x, by the diagonals of F and of x's second moments, and
as a product of the two (K-FAC: Martens and Grosse 2015, arXiv:1503.05671), an error dW costs

    1/2 sum_oi E[g_o^2] (E[|g|^2 x_i^2] / E[|g|^2]) dW_oi^2.

The moments of x are weighted by |g|^2: the first token of a decoder may be thousands of times
larger than all others, and matter little. This does not see that an error may lead to the choice of
other experts, which is not a small change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qbench.calibration.walk import Progress
from qbench.errors import MethodError
from qbench.models.blocks import quantizable, read_weight


class Moments(NamedTuple):
    """The moments of one layer, float32.

    inputs: E[|g|^2 x^2] / E[|g|^2], (in,). outputs: E[g^2], (out,).
    """

    inputs: Tensor
    outputs: Tensor

    def cost(self, change: Tensor) -> float:
        """Nats per token that an error dW (out, in) of the weight costs."""
        by_row = change.float().square() @ self.inputs.to(change.device)
        return float(self.outputs.to(change.device) @ by_row) / 2


def moments(model: Any, tokens: Tensor, seed: int, progress: Progress) -> dict[str, Moments]:
    """The moments of every linear layer inside the blocks, by its full name.

    They take a forward and a backward pass for each sequence. tokens: (samples, length). seed: of
    the drawn tokens. A layer that no token reaches has the means of all others. The model stays as
    it is. MethodError where its logits are not finite.
    """
    layers = quantizable(model)
    sums = {name: _Sums() for name in layers}
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as stack:
        stack.enter_context(_frozen(model))
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(sums[name].watch).remove)
        for index, sequence in enumerate(tokens.split(1)):
            progress(index / len(tokens), f"sensitivity {index + 1}/{len(tokens)}")
            _backward(model, sequence, generator)
    seen = {name: own.moments(tokens.numel()) for name, own in sums.items() if own.power > 0}
    return {name: seen.get(name) or _typical(layer, seen) for name, layer in layers.items()}


class _Sums:
    """Sums for one layer, over the tokens so far."""

    def __init__(self) -> None:
        self.inputs: Any = 0.0  # of |g|^2 x^2, (in,)
        self.outputs: Any = 0.0  # of g^2, (out,)
        self.power = 0.0  # of |g|^2

    def watch(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook: the input is kept until the gradient of the output comes."""
        x = args[0].detach()

        def add(grad: Tensor) -> None:
            squared = grad.flatten(0, -2).float().square()  # (tokens, out)
            power = squared.sum(1)  # (tokens,)
            self.inputs = self.inputs + power @ x.flatten(0, -2).float().square()
            self.outputs = self.outputs + squared.sum(0)
            self.power += float(power.sum())

        if output.requires_grad:  # no token has reached the expert otherwise
            output.register_hook(add)

    def moments(self, tokens: int) -> Moments:
        """The moments over all `tokens` of the text, also those that did not reach the layer."""
        return Moments(self.inputs / self.power, self.outputs / tokens)


def _backward(model: Any, sequence: Tensor, generator: torch.Generator) -> None:
    """Backward pass for the log-probabilities of tokens drawn from the model, one at each place."""
    with torch.enable_grad():
        logits = model(input_ids=sequence.to(model.device), use_cache=False).logits
        log_p = logits.flatten(0, 1).float().log_softmax(-1)  # (tokens, vocabulary)
        if log_p.isnan().any():  # -inf is a token that the model never says
            raise MethodError(
                "the model's logits are not finite on the calibration text, so that bits cannot be "
                "divided between layers; repair the checkpoint, or read it in a wider dtype"
            )
        drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
        log_p.gather(1, drawn.to(log_p.device)).sum().backward()


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """A context in which parameters have no gradients, and the embedding's output has them."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, args, output: output.requires_grad_())
    try:
        yield
    finally:
        handle.remove()
        for parameter in parameters:
            parameter.requires_grad_(True)


def _typical(layer: Any, seen: dict[str, Moments]) -> Moments:
    """Moments for a layer that no token reached: for all channels, the means of other layers."""
    out, columns = read_weight(layer).shape
    x, g = (torch.stack([part[i].mean() for part in seen.values()]).mean() for i in (0, 1))
    return Moments(x.expand(columns).clone(), g.expand(out).clone())
