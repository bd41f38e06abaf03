"""OmniQuant: start, gradients against a plain reference, training, transformations, families."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from transformers.pytorch_utils import Conv1D

import qbench
from families import GPT2, OPT
from qbench import Scheme
from qbench.calibration.folding_search import find_folds
from qbench.calibration.objective import Objective
from qbench.calibration.reconstruction import Weights
from qbench.calibration.training import Steps
from qbench.checks.samples import sample_weight
from qbench.methods.flexround import FlexRound
from qbench.methods.grids import range_grid, round_to_grid, weight_range
from qbench.methods.learned_scales import Transformed
from qbench.methods.migration import largest_inputs, migration
from qbench.methods.omniquant import OmniQuant, augmented
from qbench.models.blocks import linears, quantizable
from samples import normal, token_ids
from walks import walked_block

SCHEME = Scheme(3, 16)
TOKENS = token_ids(6)


def opt_with_large_channels(random_model):
    """An OPT in which some channels of each norm are large, as they are in trained ones."""
    model = random_model(hf.OPTForCausalLM, hf.OPTConfig(**OPT))
    for layer in model.model.decoder.layers:
        for norm in (layer.self_attn_layer_norm, layer.final_layer_norm):
            norm.weight.data[[3, 17]] *= 20
            norm.bias.data += 0.3 * normal(32)
    return model


@pytest.mark.parametrize("let", ["auto", "on"])
def test_every_family_end_to_end(family, let):
    model = family()
    before = model(TOKENS).logits
    method = qbench.get_method("omniquant", epochs=1, let=let)
    result = qbench.quantize(model, method, Scheme(4, 16), TOKENS)
    assert set(result.weights) == set(quantizable(model))
    after = model(TOKENS).logits
    assert torch.isfinite(after).all() and (after - before).square().mean() < before.var()


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_start_is_the_range_cut_by_sigmoid_4(symmetric):
    weight, scheme = sample_weight(), Scheme(3, 32, symmetric)
    found = OmniQuant(clip="none").prepare(weight, scheme)
    W = weight.view(48, -1, 32)
    low, high = weight_range(W, symmetric, integer=True)
    s, z = range_grid(low, high, scheme, torch.tensor(4.0).sigmoid(), integer=True)
    plain = s[..., None] * (round_to_grid(W, s, z, 3) - z[..., None])
    torch.testing.assert_close(found().view_as(W), plain)
    stored = found.export().dequantize().view_as(W)
    differs = (stored - plain).abs() > 1e-3 * plain.abs()
    assert (
        differs.double().mean() < 1e-3
    )  # a tie falls to the other side where the scale is rounded to float16


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_start_of_a_search_is_that_of_rtn(symmetric):
    weight, scheme = sample_weight(), Scheme(3, 32, symmetric)
    found = OmniQuant().prepare(weight, scheme).export().dequantize()
    plain = qbench.get_method("rtn").quantize_weight(weight, scheme).dequantize()
    errors = [(dense - weight).square().sum(1) for dense in (found, plain)]
    # The search may end a grid beyond the largest weight, and a part of the range cannot.
    assert (errors[0] <= 1.1 * errors[1]).all()
    assert errors[0].sum() <= 1.03 * errors[1].sum()


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_equal_those_of_the_plain_equation(symmetric):
    generator = torch.Generator().manual_seed(0)
    weight, scheme = sample_weight()[:, :64], Scheme(2, 32, symmetric)
    found = OmniQuant().prepare(weight, scheme).double()
    for parameter in found.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    mine, plain = (weight.double().requires_grad_() for _ in range(2))
    G = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    first = torch.autograd.grad((found(mine) * G).sum(), [mine, *found.parameters()])
    W = plain.view(48, -1, 32)
    high = found.gamma.sigmoid() * (W.abs().amax(-1) if symmetric else W.amax(-1).clamp_min(0))
    if symmetric:
        s, z = (high / 1).clamp_min(1e-12), torch.full_like(high, 2.0)
    else:
        low = found.beta.sigmoid() * W.amin(-1).clamp_max(0)
        s = ((high - low) / 3).clamp_min(1e-12)
        z = (-low / s).detach().round().clamp(0, 3)
    v = W / s[..., None]
    q = (v + (v.round() - v).detach() + z[..., None]).clamp(0, 3)
    second = torch.autograd.grad(
        ((q - z[..., None]) * s[..., None] * G.view_as(W)).sum(), [plain, *found.parameters()]
    )
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_range_without_zero_is_not_stretched_to_it(sign):
    """All weights of a group of one sign: the zero point lies outside of the codes."""
    weight = sample_weight()
    weight[:, :32] = sign * (1 + 0.1 * normal(48, 32).sigmoid())
    found = OmniQuant(clip="none").prepare(weight, Scheme(3, 32)).export()
    assert found.zero_point.is_floating_point()
    error = (found.dequantize() - weight)[:, :32].abs().amax()
    assert error <= 0.1 / 7 + 0.02 * 1.1  # a step, and what sigmoid(4) cuts off
    plain = qbench.get_method("rtn").quantize_weight(weight, Scheme(3, 32)).dequantize()
    assert error < (plain - weight)[:, :32].abs().amax()
    # A layer of ordinary groups keeps integers of `bits` bits.
    assert OmniQuant().prepare(sample_weight(), Scheme(3, 32)).export().zero_point.dtype == (
        torch.uint8
    )


def test_a_constant_group_far_from_zero_is_kept():
    weight = torch.full((4, 32), 3.0)
    found = OmniQuant(clip="none").prepare(weight, Scheme(2, 32)).export().dequantize()
    torch.testing.assert_close(found, weight, rtol=0.02, atol=0)  # sigmoid(4) is 0.982


def test_the_augmented_loss_trains_on_the_mean_of_both_targets(tiny):
    block, inputs, targets = walked_block(tiny(), TOKENS)
    means = augmented(block, inputs, targets)
    output = normal(*targets[0].shape)
    both = [targets[0], inputs.run(block, inputs.quantized[0], 0)]
    errors = [(output - target).square().sum(-1) for target in both]
    apart = (both[0] - both[1]).square().sum(-1)
    torch.testing.assert_close(
        sum(errors), 2 * (output - means[0]).square().sum(-1) + apart / 2, rtol=1e-4, atol=1e-4
    )
    off, auto = (
        OmniQuant(epochs=2, aug_loss=choice).quantize_block(block, inputs, targets, SCHEME)
        for choice in ("off", "auto")
    )
    assert (off.log == auto.log) == (torch.equal(means[0], targets[0]))


def test_the_learning_rate_stays_as_it_is(tiny):
    block, *_ = walked_block(tiny(), TOKENS)
    for method, least in ((OmniQuant(epochs=2), 1.0), (FlexRound(epochs=2), 0.0)):
        weight = method.prepare(sample_weight(), SCHEME)
        state = Weights(block, {"weight": weight})
        steps = Steps(state, method, Objective("mse"), 3, torch.device("cpu"))
        rate = steps.optimizer.param_groups[0]["lr"]
        for _ in range(6):
            steps.optimizer.step()
            steps.schedule.step()
        assert steps.optimizer.param_groups[0]["lr"] == pytest.approx(least * rate)


def test_training_lowers_the_loss_of_a_block(tiny):
    block, inputs, targets = walked_block(tiny(), TOKENS)
    state = copy.deepcopy(block.state_dict())
    for clip in ("search", "none"):
        method = OmniQuant(epochs=10, lr_lwc=0.05, clip=clip, holdout=0)
        result = method.quantize_block(block, inputs, targets, SCHEME)
        assert result.log["final"] < 0.97 * result.log["initial"] and not result.parameters
    assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())


def test_transformations_help_where_a_few_channels_are_large(random_model):
    block, inputs, targets = walked_block(opt_with_large_channels(random_model), TOKENS)
    state = copy.deepcopy(block.state_dict())
    plain, transformed = (
        OmniQuant(epochs=5, let=let, holdout=0).quantize_block(block, inputs, targets, SCHEME)
        for let in ("off", "auto")
    )
    assert (
        transformed.log["initial"] < plain.log["initial"]
        and transformed.log["final"] < plain.log["final"]
    )
    assert not plain.parameters
    assert set(transformed.parameters) == {
        f"{name}.{part}"
        for name in ("self_attn_layer_norm", "final_layer_norm")
        for part in ("weight", "bias")
    } | {"self_attn.v_proj.bias", "fc1.bias"}
    assert transformed.log["final"] <= transformed.log["initial"]
    assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())


def test_auto_is_off_for_norms_without_a_bias(tiny):
    block, inputs, targets = walked_block(tiny(), TOKENS)
    auto, off, on = (
        OmniQuant(epochs=1, let=let).quantize_block(block, inputs, targets, SCHEME)
        for let in ("auto", "off", "on")
    )
    assert not auto.parameters and auto.log == off.log
    assert set(on.parameters) == {"input_layernorm.weight", "post_attention_layernorm.weight"}


@pytest.mark.parametrize("kind", ["opt", "gpt2-conv1d", "llama"])
def test_what_is_stored_is_what_was_trained(kind, random_model, tiny):
    if kind == "llama":
        model = tiny()
    elif kind == "opt":
        model = opt_with_large_channels(random_model)
    else:
        model = random_model(hf.GPT2LMHeadModel, hf.GPT2Config(**GPT2))
    block, inputs, _ = walked_block(model, TOKENS)
    folds = find_folds(block, inputs)
    largest = largest_inputs(block, inputs, folds)
    scales = [migration(block, fold, x) for fold, x in zip(folds, largest, strict=True)]
    state = Transformed(block, OmniQuant(), Scheme(8, 16), folds, scales)
    values, result = state.substitutes(), state.export()
    assert values.keys() == {f"{name}.weight" for name in result.weights} | result.parameters.keys()
    for name, layer in linears(block).items():
        dense = (
            values[f"{name}.weight"].T if isinstance(layer, Conv1D) else values[f"{name}.weight"]
        )
        step = result.weights[name].unpacked()[1].amax()
        assert (result.weights[name].dequantize() - dense).abs().max() <= 1.01 * step
    output = inputs.run(block, inputs.full[0], 0, values)
    exact = inputs.run(block, inputs.full[0], 0)
    assert (output - exact).norm() < 0.05 * (
        exact - inputs.full[0]
    ).norm()  # 8 bits: the transformation is exact


def test_gradients_reach_scales_and_clips(random_model):
    block, inputs, targets = walked_block(opt_with_large_channels(random_model), TOKENS)
    folds = find_folds(block, inputs)
    state = Transformed(
        block, OmniQuant(), SCHEME, folds, [torch.ones(len(f.channels)) for f in folds]
    )
    output = inputs.run(block, inputs.full[0], 0, state.substitutes())
    (output - targets[0]).square().mean().backward()
    rates = {group["lr"] for group in state.groups()}
    assert rates == {OmniQuant().lr_let, OmniQuant().lr_lwc}
    for group in state.groups():
        assert all(
            p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any()
            for p in group["params"]
        )


def test_largest_inputs(tiny):
    block, inputs, _ = walked_block(tiny(), TOKENS)
    folds = find_folds(block, inputs)
    seen = []
    hook = block.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for i, hidden in enumerate(inputs.quantized):
        inputs.run(block, hidden, i)
    hook.remove()
    expected = torch.cat([part.flatten(0, -2) for part in seen]).abs().amax(0)
    torch.testing.assert_close(largest_inputs(block, inputs, folds)[-1], expected)


def test_deterministic_on_one_sample(tiny):
    found = []
    for _ in range(2):
        model = tiny()
        qbench.quantize(model, qbench.get_method("omniquant", epochs=2), SCHEME, token_ids(1, 4))
        found.append(model(TOKENS).logits)
    assert torch.equal(*found) and torch.isfinite(found[0]).all()


@pytest.mark.parametrize("let", ["off", "on"])
def test_a_weight_of_zeros_and_a_dead_channel(tiny, let):
    model = tiny()
    block = model.model.layers[1]
    block.mlp.up_proj.weight.data.zero_()
    block.input_layernorm.weight.data[5] = 0
    found = qbench.quantize(
        model, qbench.get_method("omniquant", epochs=1, let=let), SCHEME, TOKENS
    )
    assert not found.weights["model.layers.1.mlp.up_proj"].dequantize().any()
    assert torch.isfinite(model(TOKENS).logits).all()
