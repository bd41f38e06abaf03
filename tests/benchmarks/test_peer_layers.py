"""Our methods beside other packages' on single layers: the comparing part, on small numbers."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch

from places import ROOT
from qbench.contracts import LinearStats, Scheme
from qbench.registry import get_method


@pytest.fixture(scope="module")
def peer_layers():
    spec = importlib.util.spec_from_file_location(
        "peer_layers", ROOT / "benchmarks" / "peer_layers.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_first_difference_of_a_row_is_the_first_in_the_order_of_rounding(peer_layers):
    codes = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    others = torch.tensor([[1, 2, 3], [0, 2, 4], [1, 0, 3]])
    rows, columns = peer_layers.first_differences(codes, others, torch.tensor([2, 0, 1]))
    assert rows.tolist() == [1, 2]
    assert columns.tolist() == [2, 1]


def test_agreement_measures_ties_and_leaves_other_zero_points_out(peer_layers):
    W = torch.tensor([[1.0, 1.48], [0.6, 0.0], [1.0, 1.0]])
    mine = peer_layers.Rounded(W.round(), torch.zeros(3, 2), W.round())
    codes = torch.tensor([[1.0, 2.0], [1.0, 0.0], [3.0, 3.0]])  # the first is over a tie
    zero = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 2.0]])
    theirs = peer_layers.Rounded(codes, zero, codes - zero)
    found = peer_layers.agreement(mine, W, theirs, torch.arange(2), W, torch.eye(2))
    assert found["codes"] == pytest.approx(3 / 6)
    assert found["rows"] == pytest.approx(1 / 3)
    assert found["zero_points"] == 0.5
    assert found["tie"] == pytest.approx(0.02, abs=1e-6)
    mine_loss, their_loss = 0.48**2 + 0.4**2, 0.52**2 + 0.4**2
    assert found["loss"] == pytest.approx(their_loss / mine_loss)


@pytest.mark.parametrize("act_order", [True, False])
def test_what_is_likened_differs_from_ours_in_what_it_says_alone(peer_layers, act_order):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(256, 64, generator=draw) * torch.linspace(0.2, 2, 64)
    W = torch.randn(24, 64, generator=draw)
    H = 2 / 256 * x.T @ x
    options = {"groups": "dynamic", "act_order": act_order, "clip": "none", "importance": "none"}
    scheme, stats = Scheme(3, 16), LinearStats(H, 256)
    ours = get_method("gptq", **options).rounded(W, stats, scheme)
    likened = peer_layers.Likened(**options).rounded(W, stats, scheme)
    exact = peer_layers.Likened(**options, exact=True).rounded(W, stats, scheme)
    # Growing inputs: the largest and the mean curvature put the groups in one order.
    assert torch.equal(likened.codes, ours.codes)
    assert exact.scale.dtype == torch.float32 and ours.scale.dtype == torch.float16
    order = peer_layers.order_of(H.diagonal(), 16, "dynamic", act_order)
    assert torch.equal(order.sort().values, torch.arange(64))
    assert (order.view(-1, 16) // 16).diff(dim=1).eq(0).all(), "a group is not in one piece"
    first = order[:16]
    assert not torch.equal(exact.scale, ours.scale.float())
    assert torch.allclose(exact.scale, ours.scale.float(), rtol=0.5)
    alike = exact.scale[:, first[0] // 16]
    assert torch.equal(alike.half(), ours.scale[:, first[0] // 16]), "the first grid sees no error"


def test_the_table_of_the_document_is_that_of_the_stored_results(peer_layers):
    stored = json.loads((ROOT / "benchmarks" / "results" / "peer_layers_cpu.json").read_text())
    document = (ROOT / "docs" / "peers.md").read_text()
    assert "\n".join(peer_layers.table(stored)) in document
