"""Blocks that are in memory while they are needed, and at no other time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qbench.models.paging import before_leaving, is_paged, on_device, page_out, resident


class Block(nn.Module):
    """y = W x, with a W that is somewhere else; `fails` makes a call end in an error."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2, bias=False, device="meta")
        self.fails = False

    def forward(self, x):
        if self.fails:
            raise RuntimeError("no")
        return self.inner(x)


WEIGHT = torch.arange(6.0).view(2, 3)


@pytest.fixture
def reads():
    return []


@pytest.fixture
def block(reads):
    made = Block()

    def read(device):
        reads.append(device.type)
        return {"inner.weight": WEIGHT.clone()}

    page_out(made, read)
    return made


def test_a_call_brings_the_weights_and_gives_them_up(block, reads):
    empty = block.inner.weight
    assert torch.equal(block(torch.eye(3)), WEIGHT.T)
    assert block.inner.weight is empty and empty.is_meta and reads == ["cpu"]


def test_while_a_block_is_resident_calls_read_nothing(block, reads):
    with resident(block), resident(block):
        block.inner.weight.data += 1
        for _ in range(3):
            assert torch.equal(block(torch.eye(3)), WEIGHT.T + 1)
    assert reads == ["cpu"] and block.inner.weight.is_meta
    assert torch.equal(block(torch.eye(3)), WEIGHT.T), "a change that nobody keeps is lost"


def test_a_failing_call_leaves_nothing_in_memory(block):
    block.fails = True
    with pytest.raises(RuntimeError, match="no"):
        block(torch.eye(3))
    assert block.inner.weight.is_meta
    block.fails = False
    assert torch.equal(block(torch.eye(3)), WEIGHT.T)


def test_what_cannot_be_read_is_the_callers_error_once(block, monkeypatch):
    whole = nn.Sequential(block)
    broken = Block()
    page_out(broken, lambda device: {"inner.missing": WEIGHT})
    with pytest.raises(KeyError):
        nn.Sequential(broken)(torch.eye(3))
    assert torch.equal(whole(torch.eye(3)), WEIGHT.T)


def test_a_block_that_is_passed_over_reads_nothing(block, reads):
    block.forward = lambda x: x
    block(torch.eye(3))
    del block.forward
    assert reads == []


def test_leaving_sees_the_changed_weights_unless_something_went_wrong(block):
    seen = []
    before_leaving(block, lambda: seen.append(block.inner.weight.detach().clone()))
    with resident(block):
        block.inner.weight.data *= 2
    assert len(seen) == 1 and torch.equal(seen[0], 2 * WEIGHT)
    with pytest.raises(RuntimeError), resident(block):
        raise RuntimeError
    assert len(seen) == 1 and block.inner.weight.is_meta


def test_what_is_not_paged_is_left_alone(block):
    plain = nn.Linear(2, 2)
    with resident(plain):
        assert not plain.weight.is_meta
    assert not is_paged(plain) and is_paged(nn.Sequential(plain, block))


def test_a_model_moves_without_its_pages_which_follow(block, reads):
    model = nn.Sequential(nn.Linear(3, 3), block)
    tied = nn.Linear(3, 3)
    tied.weight = model[0].weight
    model.append(tied)
    on_device(model, "cpu")
    assert model[2].weight is model[0].weight
    on_device(nn.Sequential(block), "meta")
    with resident(block):
        assert reads == ["meta"]
