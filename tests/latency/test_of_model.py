"""What of a saved model is timed once, and which layers count as alike."""

from __future__ import annotations

from torch import nn

from qbench.checkpoint.packed_linear import QuantLinear
from qbench.kernels.samples import random_binary
from qbench.latency.of_model import alike


def test_layers_are_alike_where_shape_format_and_bits_are():
    """Binary weights of other bits differ by the shapes of their planes alone."""
    model = nn.Sequential()
    for bits in (2, 3, 2):
        model.append(QuantLinear(random_binary((64, 64), bits, 32), None))
    groups = alike(model)
    assert [(group.weight.bits, group.count) for group in groups] == [(2, 2), (3, 1)]
    assert len({group.key for group in groups}) == 2
