"""The engine: what it returns is never worse than the start, whatever the training does."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import qbench
from qbench import Scheme
from qbench.calibration.objective import STRIDE, Objective, block_loss
from qbench.calibration.reconstruction import Reconstruction, TrainedWeight, Weights
from qbench.calibration.training import Steps, reconstruct, split
from qbench.contracts import BlockInputs
from qbench.errors import ConfigError, MethodError
from samples import normal, token_ids

SCHEME = Scheme(3, 16)


class Residual(nn.Module):
    """A small block: two linear layers, a nonlinearity, and a residual connection."""

    def __init__(self, width=32):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden):
        return (hidden + self.down(torch.relu(self.up(self.norm(hidden)))),)


@pytest.fixture
def case():
    return make_case()


def make_case(batches=4, spoil=0.02):
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = Residual()
    low_rank = torch.randn(
        6, 32, generator=generator
    )  # with independent inputs there is little to reconstruct
    full = [torch.randn(2, 24, 6, generator=generator) @ low_rank for _ in range(batches)]
    full = [x + 0.1 * torch.randn(x.shape, generator=generator) for x in full]
    quantized = [x + spoil * torch.randn(x.shape, generator=generator) for x in full]
    inputs = BlockInputs(quantized, full, [((), {})] * batches)
    with torch.no_grad():
        return block, inputs, [inputs.run(block, x, i) for i, x in enumerate(full)]


def trained(case, name="flexround", **params):
    block, inputs, targets = case
    # Starts from error feedback leave nothing to train in so small a block.
    starts = {"flexround": {"start": "weights"}, "uniquanf": {"initialization": "unified"}}
    params = starts.get(name, {}) | params
    with torch.no_grad():
        return qbench.get_method(name, **params).quantize_block(block, inputs, targets, SCHEME)


def loss_of(case, result, batches):
    block, inputs, targets = case
    values = {f"{name}.weight": weight.dequantize() for name, weight in result.weights.items()}
    with torch.no_grad():
        found = [
            block_loss(inputs.run(block, inputs.quantized[i], i, values), targets[i], "damped")
            for i in batches
        ]
    return sum(loss.item() for loss in found) / len(found)


@pytest.mark.parametrize("name", ["flexround", "uniquanf"])
def test_training_lowers_the_loss_and_the_log_says_the_truth(case, name):
    # From a start that knows the inputs there would be nothing to gain on so few tokens.
    params = {"initialization": "unified"} if name == "uniquanf" else {}
    start = trained(case, name, epochs=0, **params)
    found = trained(case, name, epochs=10, lr=1e-2, **params)
    assert loss_of(case, found, [3]) == pytest.approx(found.log["final"], rel=1e-4)
    assert loss_of(case, start, [3]) == pytest.approx(found.log["initial"], rel=1e-4)
    assert found.log["final"] < 0.96 * found.log["initial"] and found.log["final"] == min(
        found.log["judged"]
    )
    assert len(found.log["losses"]) == 30 and len(found.log["judged"]) == 11
    assert json.loads(json.dumps(found.log)) == found.log


@pytest.mark.parametrize(
    "name, at_3_bits",
    [
        ("flexround", 0.015),
        ("uniquanf", 0.01),
        pytest.param("flexbcq", 0.01, marks=pytest.mark.slow),
    ],
)
def test_the_learning_rate_follows_the_step_of_the_grid_unless_it_is_given(name, at_3_bits):
    weight = normal(8, 32)

    def rates(bits, **params):
        if name != "flexround":
            params = {"initialization": "unified", **params}
        return qbench.get_method(name, **params).prepare(weight, Scheme(bits, 32)).groups()[0]["lr"]

    assert [rates(bits) for bits in (2, 3, 4)] == pytest.approx(
        [2 * at_3_bits, at_3_bits, at_3_bits / 2]
    )
    assert rates(2, lr=0.005) == rates(4, lr=0.005) == 0.005


@pytest.mark.parametrize("name", ["flexround", "uniquanf"])
@pytest.mark.parametrize("lr", [3.0, 1e6])
def test_a_diverging_learning_rate_gives_the_start_back(case, name, lr):
    start, found = trained(case, name, epochs=0), trained(case, name, epochs=4, lr=lr)
    assert found.log["best_epoch"] == 0 and found.log["final"] == found.log["initial"]
    for layer, weight in found.weights.items():
        assert torch.equal(weight.dequantize(), start.weights[layer].dequantize())


def test_a_loss_that_is_not_finite_stops_and_is_recorded(case):
    found = trained(case, "flexround", epochs=4, lr=1e38)
    assert (
        found.log["stopped"].startswith("stopped at step 2: the loss is")
        and len(found.log["losses"]) == 2
    )
    assert isinstance(found.log["losses"][1], str)


def test_inputs_that_are_not_finite_are_an_error(case):
    case[2][3][0, 0, 0] = math.nan
    with pytest.raises(MethodError, match="loss is not finite before any training"):
        trained(case)


def test_training_stops_without_improvement(case):
    found = trained(case, "flexround", epochs=50, lr=3.0, patience=2)
    assert (
        found.log["stopped"] == "stopped after epoch 2: no improvement for 2"
        and len(found.log["judged"]) == 3
    )


@pytest.mark.parametrize("name", ["flexround", "uniquanf"])
def test_one_batch_trains_and_judges(name):
    case = make_case(batches=1)
    assert (
        trained(case, name, epochs=8, lr=2e-3).log["final"]
        < trained(case, name, epochs=0).log["initial"]
    )


def test_the_block_is_left_alone_and_the_result_is_deterministic(case):
    before = {name: value.clone() for name, value in case[0].state_dict().items()}
    state = torch.get_rng_state()
    first, second = trained(case, "uniquanf", epochs=3), trained(case, "uniquanf", epochs=3)
    assert torch.equal(state, torch.get_rng_state())
    assert first.log == second.log
    for name, value in case[0].named_parameters():
        assert torch.equal(value, before[name]) and value.grad is None and value.requires_grad
    for layer in first.weights:
        assert torch.equal(first.weights[layer].dequantize(), second.weights[layer].dequantize())
    other = trained(case, "uniquanf", epochs=3, seed=1)
    assert other.log["losses"] != first.log["losses"]


def test_low_precision_products_change_little(case):
    block, inputs, targets = case
    low = BlockInputs(inputs.quantized, inputs.full, inputs.arguments, torch.bfloat16)
    found = trained((block, low, targets), "flexround", epochs=6, lr=1e-2)
    assert found.log["final"] == pytest.approx(
        trained(case, epochs=6, lr=1e-2).log["final"], rel=0.2
    )


@dataclass(frozen=True)
class Free(Reconstruction):
    """Trains the weight itself: the engine against a plain loop."""


class FreeWeight(TrainedWeight):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight * 0.9)

    def forward(self):
        return self.weight

    def export(self):
        return qbench.formats.Dense(self.weight.detach().clone())

    def groups(self):
        return [{"params": [self.weight], "lr": 2e-3}]


def test_the_engine_equals_a_plain_loop(case):
    block, inputs, targets = case
    recipe = Free(epochs=3, mixing=1.0, holdout=0.25, loss="mse")
    weights = {
        name: FreeWeight(block.get_parameter(f"{name}.weight").detach()) for name in ("up", "down")
    }
    with torch.no_grad():
        found = reconstruct(block, Weights(block, weights), inputs, targets, recipe)
    plain = make_case()[0].double()
    for layer in (plain.up, plain.down):
        layer.weight.data *= 0.9
    adam = torch.optim.Adam([plain.up.weight, plain.down.weight], lr=2e-3)
    shuffle = torch.Generator().manual_seed(0)
    losses, states = [], [plain.up.weight.detach().clone()]
    for step in range(9):
        order = torch.randperm(3, generator=shuffle).tolist() if step % 3 == 0 else order  # noqa: F821
        i = order[step % 3]
        adam.param_groups[0]["lr"] = 2e-3 * (1 + math.cos(math.pi * step / 9)) / 2
        loss = (plain(inputs.quantized[i].double())[0] - targets[i]).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
        states += [plain.up.weight.detach().clone()] if step % 3 == 2 else []
    assert found.log["losses"] == pytest.approx(losses, rel=1e-4) and found.log["best_epoch"] > 0
    best = states[found.log["best_epoch"]]
    torch.testing.assert_close(
        found.weights["up"].dequantize().double(), best, rtol=1e-4, atol=1e-5
    )


def test_a_weight_is_prepared_with_the_second_moments_of_its_input(case):
    block, inputs, targets = case
    seen = []

    @dataclass(frozen=True)
    class Watching(Reconstruction):
        def prepare(self, weight, scheme, stats):
            seen.append((weight, stats))
            return FreeWeight(weight)

    with torch.no_grad():
        Watching(epochs=0).quantize_block(block, inputs, targets, SCHEME)
        rows = torch.cat([block.norm(x) for x in inputs.quantized]).flatten(0, 1).double()
        hidden = torch.relu(block.up(rows.float())).double()
    for (weight, stats), layer, x in zip(seen, (block.up, block.down), (rows, hidden), strict=True):
        assert torch.equal(weight, layer.weight) and stats.count == len(x) == 192
        torch.testing.assert_close(
            stats.hessian.double(), 2 / len(x) * x.T @ x, rtol=1e-4, atol=1e-5
        )
    assert not any(layer._forward_pre_hooks for layer in (block.up, block.down))


def test_inputs_are_mixed_element_by_element(case):
    _, inputs, _ = case
    weight = FreeWeight(torch.ones(2, 2))
    for mixing in (0.0, 0.3, 1.0):
        mixed = Steps(weight, Free(mixing=mixing), Objective("mse"), 1, torch.device("cpu")).mixed(
            inputs, 0
        )
        from_quantized, from_full = mixed == inputs.quantized[0], mixed == inputs.full[0]
        assert (from_quantized | from_full).all()
        assert from_quantized.float().mean().item() == pytest.approx(mixing, abs=0.03)


def test_the_last_block_is_judged_by_the_logits_too(case):
    block, inputs, targets = case
    head = nn.Linear(32, 50)
    seen = replace(inputs, logits=head)
    with torch.no_grad():
        plain = qbench.get_method("flexround", epochs=0)
        start = plain.quantize_block(block, seen, targets, SCHEME)
        alone = plain.quantize_block(block, inputs, targets, SCHEME)
        # Either part counts by its value at the start, in units of the block's loss.
        assert start.log["initial"] == pytest.approx(alone.log["initial"], rel=1e-4)
        values = {f"{name}.weight": weight.dequantize() for name, weight in start.weights.items()}
        output = inputs.run(block, inputs.quantized[3], 3, values).double()
        p, q = (
            torch.softmax(part[:, 1::STRIDE] @ head.weight.double().T + head.bias.double(), -1)
            for part in (targets[3].double(), output)
        )
        kl = (p * (p.log() - q.log())).sum(-1).mean().item()
        objective = Objective("mse", head, 2.0, 0.5)
        error = (output - targets[3]).square().mean().item()
        found = objective(output.float(), targets[3], 1).item()
        assert found == pytest.approx(error / 2 + 2 * kl, rel=1e-3) and kl > 0
    moved = trained((block, seen, targets), epochs=6, lr=1e-2)
    other = trained(case, epochs=6, lr=1e-2)
    assert moved.log["final"] < moved.log["initial"]
    assert not torch.equal(moved.weights["up"].codes, other.weights["up"].codes)
    without = trained((block, seen, targets), epochs=6, lr=1e-2, head=0)
    assert torch.equal(without.weights["up"].codes, other.weights["up"].codes)


def test_the_last_batches_judge():
    assert split(16, 0.125) == (list(range(14)), [14, 15])
    assert split(2, 0.125) == ([0], [1])
    assert split(1, 0.5) == ([0], [0])
    assert split(3, 0.0) == ([0, 1, 2], [0, 1, 2])


def test_one_token_of_a_thousandfold_size():
    target = normal(1, 9, 16)
    plain = block_loss(target * 0.9, target, "mse").item()
    for kind in ("damped", "capped"):
        assert block_loss(target * 0.9, target, kind) == pytest.approx(plain, rel=0.2)
    target[0, 4] *= 1000
    losses = {
        kind: block_loss(target * 0.9, target, kind).item() for kind in ("mse", "damped", "capped")
    }
    assert losses["mse"] > 1000 and 0.1 < losses["damped"] < 10 and losses["capped"] < 0.02


@pytest.mark.parametrize(
    "params", [{"epochs": -1}, {"batch_size": 0}, {"mixing": 1.5}, {"holdout": 1.0}]
)
def test_settings_out_of_range_are_refused(params):
    with pytest.raises(ConfigError, match=next(iter(params))):
        qbench.get_method("flexround", **params)


def test_the_log_reaches_the_model_and_the_folder(tiny, tmp_path):
    tokens = token_ids(4, 12, vocabulary=259)
    model = qbench.quantize(tiny(), "flexround", Scheme(3, 16), tokens)
    assert (
        list(model.log) == ["model.layers.0", "model.layers.1"]
        and model.log["model.layers.0"]["losses"]
    )
    assert qbench.load(model.save(tmp_path / "saved")).log == model.log
    (tmp_path / "saved" / "quantize_log.json").write_text("{")
    with pytest.raises(qbench.errors.StoreError, match="quantize_log.json cannot be read"):
        qbench.load(tmp_path / "saved")
