"""The head as a function of hidden states, and who is given it."""

from __future__ import annotations

import pytest
import torch

from families import FAMILIES, family_model
from qbench.calibration.walk import walk_blocks
from samples import token_ids


@pytest.mark.parametrize("family", [*FAMILIES])
def test_hidden_states_behind_the_last_block_give_the_logits_of_the_model(family):
    model = family_model(*FAMILIES[family])
    tokens = token_ids(3, 12, vocabulary=64)
    heads = []

    def visit(name, block, inputs, targets):
        heads.append(inputs.logits)
        if inputs.logits is None:
            return
        with torch.no_grad():
            found = torch.cat([inputs.logits(hidden) for hidden in targets])
            expected = model(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        # Some tokens alone have the same logits, and gradients reach the hidden states alone.
        hidden = targets[0][:, 1::4].clone().requires_grad_()
        with torch.enable_grad():
            inputs.logits(hidden).square().sum().backward()
        torch.testing.assert_close(
            inputs.logits(hidden).detach(), expected[:2, 1::4], rtol=1e-4, atol=1e-4
        )
        assert hidden.grad is not None and hidden.grad.abs().max() > 0
        assert all(parameter.grad is None for parameter in model.parameters())
        assert "forward" not in block.__dict__

    walk_blocks(
        model, tokens, visit, torch.device("cpu"), lambda fraction, text: None, 2, torch.float32
    )
    assert heads[0] is None and heads[-1] is not None and len(heads) == 2
