"""What is recorded on a GPU and replayed gives what the functions give that it was recorded of."""

from __future__ import annotations

import pytest
import torch

from qbench.calibration.recorded import replay_on
from qbench.checks.samples import sample_stats, sample_weight
from qbench.contracts import Scheme
from qbench.methods import curvature, curvature_refinement, error_feedback, vector_rounding
from qbench.methods.native import loops
from qbench.registry import get_method


class Recorder:
    """Stands for a GPU: every call goes through buffers that the calls of its kind share."""

    def __init__(self):
        self.buffers = {}
        self.calls = 0

    def in_place(self, function, read, changed, *constants):
        self.calls += 1
        tensors = (*read, *changed)
        kind = (function, *(tensor.shape for tensor in tensors), *constants)
        if kind not in self.buffers:
            self.buffers[kind] = [torch.ones_like(tensor.contiguous()) for tensor in tensors]
        buffers = self.buffers[kind]
        replay_on(buffers, lambda: function(*buffers, *constants), read, changed)


@pytest.mark.parametrize(
    "module", [error_feedback, vector_rounding, curvature, curvature_refinement]
)
def test_the_codes_are_the_same_through_buffers(module, monkeypatch):
    def codes():
        if module is error_feedback:
            method = get_method("gptq", block_size=16)
            return method.quantize_linear(sample_weight(), sample_stats(), Scheme(3, 32)).codes
        if module in (curvature, curvature_refinement):
            method = get_method("alternating-h", refits=1)
            return method.quantize_linear(sample_weight(), sample_stats(), Scheme(3)).planes
        return get_method("unisvq", dimension=2).start(sample_weight(), Scheme(2)).codes

    monkeypatch.setattr(loops, "here", lambda *tensors, **dtype: False)  # as on a GPU
    monkeypatch.setattr(vector_rounding, "BUFFER", 16)  # several buffers, as of `block_size`
    monkeypatch.setattr(curvature, "BLOCK", 16)
    monkeypatch.setattr(curvature_refinement, "BLOCK", 16)
    expected = codes()
    recorder = Recorder()
    monkeypatch.setattr(module, "in_place", recorder.in_place)
    assert torch.equal(codes(), expected)
    assert recorder.calls > len(recorder.buffers), "buffers are used again"


@pytest.mark.parametrize(
    "function, tensors", [(curvature.feed_back_block, 2), (curvature_refinement.descend_block, 4)]
)
def test_what_is_recorded_on_ones_meets_no_group_that_is_not_there(function, tensors):
    """As `_recorded` runs it: every tensor is of ones, also the index of a row's only group."""
    changed = [torch.ones(4, 3) for _ in range(tensors)]
    function(torch.ones(4, 4), torch.ones(1, 8, 3), torch.ones(4, dtype=torch.long), *changed)
    assert all(torch.isfinite(tensor).all() for tensor in changed)
