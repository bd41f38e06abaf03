"""AWQ: scales and clips against plain references, guarantees on its own metric, every family."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import qbench
from qbench import Scheme
from qbench.contracts import BlockInputs, BlockResult
from qbench.errors import ConfigError, MethodError
from qbench.formats import Uniform
from qbench.methods.awq import AWQ
from qbench.methods.grids import round_to_grid
from qbench.methods.scale_sites import observe
from qbench.models.blocks import linears, quantizable, read_weight
from samples import token_ids
from walks import walked_block

SCHEME = Scheme(3, 16)
TOKENS = token_ids()


def applied(block, result):
    """A copy of the block with the result written into it."""
    block = copy.deepcopy(block)
    with torch.no_grad():
        for name, layer in linears(block).items():
            read_weight(layer).copy_(result.weights[name].dequantize())
        for name, value in result.parameters.items():
            block.get_parameter(name).copy_(value)
    return block


@torch.no_grad()
def change(block, inputs, targets, result):
    """Mean squared change of the block's output on the inputs that the method saw."""
    after = applied(block, result)
    return sum(
        (inputs.run(after, hidden, i) - target).square().mean().item()
        for i, (hidden, target) in enumerate(zip(inputs.quantized, targets, strict=True))
    )


def test_every_family_end_to_end(family):
    model = family()
    before = model(TOKENS).logits
    errors = []
    for method in ("rtn", "awq"):
        found = copy.deepcopy(model)
        result = qbench.quantize(found, method, Scheme(4, 16), TOKENS)
        assert set(result.weights) == set(quantizable(found))
        errors.append((found(TOKENS).logits - before).square().mean().item())
    assert errors[1] < before.var().item() and errors[1] < 2 * errors[0]


@torch.no_grad()
def test_no_site_ends_above_plain_rounding_and_the_log_says_so(tiny):
    block, inputs, targets = walked_block(tiny(), TOKENS)
    state = copy.deepcopy(block.state_dict())
    for symmetric in (False, True):
        result = AWQ().quantize_block(block, inputs, targets, Scheme(3, 16, symmetric))
        assert len(result.log) == 4
        for entry in result.log.values():
            assert entry["clipped"] <= entry["scaled"] <= entry["plain"]
            assert 0 <= entry["ratio"] < 1
        assert any(entry["scaled"] < entry["plain"] for entry in result.log.values())
    assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())


@torch.no_grad()
def test_the_logged_error_is_that_of_what_is_returned(tiny):
    """The last site alone, the down projection: its output error with the scales folded into up."""
    block, inputs, targets = walked_block(tiny(), TOKENS)
    result = AWQ().quantize_block(block, inputs, targets, SCHEME)
    seen = []
    hook = block.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for i, hidden in enumerate(inputs.quantized):
        inputs.run(block, hidden, i)
    hook.remove()
    x = torch.cat([part.flatten(0, -2) for part in seen])
    up, folded = block.mlp.up_proj.weight, result.weights["mlp.up_proj"].dequantize()
    scale = (up * up).sum(1) / (up * (folded / scale_of_norm(block, result))).sum(
        1
    )  # 1/s is in the rows of up
    found = result.weights["mlp.down_proj"].dequantize() / scale
    error = (x @ (found - block.mlp.down_proj.weight).T).square().mean().item()
    entry = result.log["mlp.down_proj"]
    assert error == pytest.approx(entry["clipped"], rel=0.25)
    assert error < entry["plain"]


def scale_of_norm(block, result):
    return (
        block.post_attention_layernorm.weight / result.parameters["post_attention_layernorm.weight"]
    )


@torch.no_grad()
@pytest.mark.parametrize("bits", [3, 4])
def test_some_large_activations(bits):
    """Where a few channels are a hundred times as large, scaling is far better than rounding."""
    generator = torch.Generator().manual_seed(0)
    block = nn.Sequential(nn.RMSNorm(64), nn.Linear(64, 48, bias=False))
    block[0].weight[[3, 17, 40]] *= 100
    block[1].weight.copy_(torch.randn(48, 64, generator=generator))
    hidden = torch.randn(4, 32, 64, generator=generator)
    inputs = BlockInputs([hidden], [hidden], [((), {})])
    target = inputs.run(block, hidden, 0)
    scheme = Scheme(bits, 32)
    found = AWQ().quantize_block(block, inputs, [target], scheme)
    plain = qbench.get_method("rtn").quantize_weight(block[1].weight, scheme)
    errors = [
        change(block, inputs, [target], result) for result in (found, BlockResult({"1": plain}))
    ]
    assert errors[0] < 0.3 * errors[1]
    assert found.log["1"]["ratio"] > 0.2 and set(found.parameters) == {"0.weight"}


@torch.no_grad()
def test_at_many_bits_the_folds_are_exact_under_grouped_queries(tiny):
    block, inputs, targets = walked_block(
        tiny(hidden_size=64, num_attention_heads=4, num_key_value_heads=2), TOKENS
    )
    result = AWQ().quantize_block(block, inputs, targets, Scheme(8, 16))
    assert result.log["self_attn.o_proj"]["ratio"] > 0 and result.log["mlp.down_proj"]["ratio"] > 0
    assert set(result.parameters) == {"input_layernorm.weight", "post_attention_layernorm.weight"}
    outputs = [inputs.run(block, hidden, i) for i, hidden in enumerate(inputs.quantized)]
    size = sum(
        (output - hidden).square().mean().item()
        for output, hidden in zip(outputs, inputs.quantized, strict=True)
    )
    assert change(block, inputs, outputs, result) < 1e-4 * size


@torch.no_grad()
def test_scale_and_metric_of_a_site_by_hand(tiny):
    block, inputs, _ = walked_block(tiny(), TOKENS)
    site = next(
        s for s in observe(block, inputs, Scheme(3), 80, 32, 512) if s.layers[0] == "mlp.gate_proj"
    )
    assert (
        site.layers == ("mlp.gate_proj", "mlp.up_proj")
        and site.module == "mlp"
        and site.count == 80
    )
    assert len(site.calls) == 1 and site.calls[0][2].shape == (
        2,
        16,
        32,
    )  # two sequences, 32 tokens
    mean = site.rows().abs().mean(0)  # fewer tokens than clip_tokens: all of them
    s = mean**0.35
    torch.testing.assert_close(site.scale(0.35), s / (s.max() * s.min()).sqrt())
    weights = {name: weight * 0.9 for name, weight in site.weights().items()}
    (args, _, output), copied = site.calls[0], copy.deepcopy(block.mlp)
    copied.gate_proj.weight *= 0.9
    copied.up_proj.weight *= 0.9
    assert site.error(weights) == pytest.approx(
        (copied(*args) - output).square().mean().item(), rel=1e-5
    )
    assert site.error(site.weights()) == 0


@pytest.mark.parametrize(
    "symmetric, zero_point", [(False, "integer"), (False, "real"), (True, "integer")]
)
def test_clips_equal_a_search_group_by_group(symmetric, zero_point):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(5, 24, generator=generator) ** 3
    X = torch.randn(40, 24, generator=generator)
    scheme = Scheme(3, 8, symmetric)
    method = AWQ(zero_point=zero_point)
    found = method._shrink(W, X, scheme)
    assert found.min() >= 0.55 and found.max() <= 1 and len(found.unique()) > 2
    rtn = qbench.get_method("rtn", clip="none", zero_point=zero_point)
    for row in range(5):
        for group in range(3):
            w, x = W[row, group * 8 : group * 8 + 8], X[:, group * 8 : group * 8 + 8]
            errors = []
            for i in range(10):
                limit = (1 - i / 20) * w.abs().max()
                s, z = rtn.grid(w.clamp(-limit, limit)[None], scheme)
                zero = None if z is None else z[:, None]
                rounded = Uniform.from_codes(
                    round_to_grid(w[None, None], s[None], z, 3)[0], s[:, None], zero, 3
                )
                errors.append((x @ (rounded.dequantize()[0] - w)).square().mean())
            chosen = round((1 - found[row, group].item()) * 20)
            assert errors[chosen] <= min(errors) * 1.01


def test_without_folds_and_clips_it_is_rounding(tiny):
    block, inputs, targets = walked_block(tiny(), TOKENS)
    plain = qbench.get_method("rtn", clip="none")
    with torch.no_grad():
        found = AWQ(grid=1, clip="none").quantize_block(block, inputs, targets, SCHEME)
    assert not found.parameters
    for name, layer in linears(block).items():
        expected = plain.quantize_weight(read_weight(layer), SCHEME)
        assert torch.equal(found.weights[name].dequantize(), expected.dequantize())


def test_deterministic_on_one_sample(tiny):
    found = []
    for _ in range(2):
        model = tiny()
        qbench.quantize(model, "awq", SCHEME, token_ids(1, 4))
        found.append(model(TOKENS).logits)
    assert torch.equal(*found) and torch.isfinite(found[0]).all()


def test_a_weight_of_zeros_and_a_dead_channel(tiny):
    model = tiny()
    block = model.model.layers[1]
    block.mlp.up_proj.weight.data.zero_()
    block.input_layernorm.weight.data[5] = 0
    found = qbench.quantize(model, "awq", SCHEME, TOKENS)
    assert not found.weights["model.layers.1.mlp.up_proj"].dequantize().any()
    assert torch.isfinite(model(TOKENS).logits).all()


def test_a_layer_that_no_token_reaches_is_rounded_by_its_weight(tiny):
    model = tiny()
    model.model.layers[1].mlp.expert = nn.Linear(32, 32)
    weight = read_weight(model.model.layers[1].mlp.expert).clone()
    found = qbench.quantize(model, "awq", SCHEME, TOKENS).weights["model.layers.1.mlp.expert"]
    assert torch.equal(
        found.dequantize(), qbench.get_method("rtn").quantize_weight(weight, SCHEME).dequantize()
    )


@torch.no_grad()
def test_few_tokens_are_spread_over_the_batches(tiny):
    block, inputs, _ = walked_block(tiny(), token_ids(8))  # four batches of 32 tokens
    site = observe(block, inputs, Scheme(3), 64, 64, 6)[0]
    assert site.count == 64 and len(site.calls) == 2 and site.rows().shape == (6, 32)
    for (_, kwargs, _), i in zip(site.calls, (0, 2), strict=True):
        assert torch.equal(kwargs["hidden_states"], block.input_layernorm(inputs.quantized[i]))


def test_bad_requests(tiny):
    with pytest.raises(ConfigError, match="max_shrink within 0..1"):
        AWQ(max_shrink=1.0)
    hidden = torch.full((1, 4, 16), torch.inf)
    with pytest.raises(MethodError, match="the outputs of 0 are not finite"), torch.no_grad():
        AWQ().quantize_block(
            nn.Sequential(nn.Linear(16, 8)), BlockInputs([hidden], [hidden], [((), {})]), [], SCHEME
        )


def test_progress_is_told(tiny):
    block, inputs, targets = walked_block(tiny(), TOKENS)
    seen = []
    with torch.no_grad():
        AWQ().quantize_block(
            block,
            replace(inputs, progress=lambda fraction, text: seen.append((fraction, text))),
            targets,
            SCHEME,
        )
    assert seen[0] == (0.0, "searching self_attn.q_proj") and [part for part, _ in seen] == sorted(
        p for p, _ in seen
    )
