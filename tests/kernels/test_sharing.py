"""Prepared inputs serve again only for the same tensor with the same numbers, and in a scope."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from qbench.checkpoint.packed_linear import pack
from qbench.kernels import dispatch, sharing
from qbench.kernels.contract import Kernel
from qbench.kernels.sharing import share_inputs, shared
from samples import binary_weight


class Preparation:
    """Counts how often x was prepared; the prepared form is a copy of x."""

    def __init__(self):
        self.calls = 0

    def of(self, x, kind="a"):
        def prepare():
            self.calls += 1
            return x.clone()

        prepared = shared(x, kind, prepare)
        assert torch.equal(prepared, x), "stale"
        return prepared


@pytest.fixture
def preparation():
    return Preparation()


def test_without_a_scope_nothing_is_kept(preparation):
    x = torch.ones(3)
    preparation.of(x)
    preparation.of(x)
    assert preparation.calls == 2 and sharing._scope.entry is None


def test_one_preparation_serves_the_layers_that_read_the_same_tensor(preparation):
    x = torch.ones(3)
    with sharing.sharing():
        assert preparation.of(x) is preparation.of(x) is preparation.of(x)
        assert preparation.calls == 1
        preparation.of(x, kind="b")
        assert preparation.calls == 2, "another kind of preparation"
    assert sharing._scope.entry is None, "nothing outlives the scope"


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: x[1:].zero_(),
        lambda x: x.view(1, 3).mul_(2),
        lambda x: x.detach().copy_(torch.zeros(3)),
        lambda x: x.set_(torch.zeros(3)),
        lambda x: x.resize_(1),
    ],
    ids=["itself", "a slice", "a view", "detached", "set", "resized"],
)
def test_a_write_is_seen(preparation, write):
    x = torch.ones(3)
    with sharing.sharing():
        preparation.of(x)
        write(x)
        preparation.of(x)
    assert preparation.calls == 2


def test_another_tensor_in_the_same_memory_is_another(preparation):
    memory = torch.ones(3)
    with sharing.sharing():
        for value in range(4):
            x = torch.full((3,), float(value))
            preparation.of(x)
            del x  # whose memory, and perhaps whose id, the next one has
        preparation.of(memory.view(3))
        preparation.of(memory.view(3))
    assert preparation.calls == 6


def test_a_tensor_that_gets_other_memory_at_the_same_address_is_seen(preparation):
    x, memory = torch.empty(0), bytearray(12)
    with sharing.sharing():
        for value in range(3):
            x.data = torch.frombuffer(memory, dtype=torch.float32).fill_(value)
            preparation.of(x)
    assert preparation.calls == 3


def test_tensors_of_inference_mode_are_not_kept(preparation):
    with torch.inference_mode(), sharing.sharing():
        x = torch.ones(3)
        preparation.of(x)
        x.add_(1)
        preparation.of(x)
    assert preparation.calls == 2


def test_threads_share_nothing(preparation):
    x = torch.ones(3)
    with sharing.sharing():
        preparation.of(x)
        thread = threading.Thread(target=preparation.of, args=(x,))
        thread.start()
        thread.join()
    assert preparation.calls == 2


def test_a_scope_inside_another_begins_and_ends_empty(preparation):
    x = torch.ones(3)
    with sharing.sharing():
        preparation.of(x)
        with sharing.sharing():
            preparation.of(x)
        preparation.of(x)
    assert preparation.calls == 3


class Block(nn.Module):
    """Three layers of which two read the block's input; `fail` raises between them."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.o = (nn.Linear(64, 64, bias=False) for _ in range(3))
        self.fail = False
        self.depths = []

    def forward(self, x):
        self.depths.append(sharing._scope.depth)
        if self.fail:
            raise ValueError("in the middle")
        return self.o(self.q(x) + self.k(x))


def test_the_layers_of_a_packed_block_share_and_a_single_one_opens_no_scope():
    weight = binary_weight(64, 64, 2, 32)
    block, single = Block(), Block()
    pack(block, {"q": weight, "k": weight})
    pack(single, {"o": weight})
    for model in (block, single):
        model(torch.ones(2, 64))
    assert (block.depths, single.depths) == ([1], [0])


@pytest.mark.parametrize("gradients", [True, False])
def test_the_layers_of_a_block_hand_the_same_tensor_to_the_kernel(monkeypatch, gradients):
    preparation = Preparation()

    def run(x, parts, bias, description):
        preparation.of(x)
        return x.new_ones(*x.shape[:-1], 64)

    monkeypatch.setattr(dispatch, "choose", lambda request, name: Kernel("counting", run))
    weight = binary_weight(64, 64, 2, 32)
    block = Block()
    pack(block, {"q": weight, "k": weight, "o": weight})
    with torch.set_grad_enabled(gradients):
        block(torch.zeros(1, 2, 64))
    assert preparation.calls == 2, "q and k share theirs, o reads another x"


def test_the_scope_of_a_module_ends_also_where_it_raises():
    block = Block()
    share_inputs(block)
    share_inputs(block)
    block(torch.ones(2, 64))
    block.fail = True
    with pytest.raises(ValueError, match="in the middle"):
        block(torch.ones(2, 64))
    assert block.depths == [1, 1] and sharing._scope.depth == 0


@pytest.mark.slow
def test_compiled_code_opens_no_scope():
    class Reading(nn.Module):
        def forward(self, x):
            return x + sharing._scope.depth

    module = Reading()
    share_inputs(module)
    assert module(torch.zeros(1)) == 1
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)) == 0
