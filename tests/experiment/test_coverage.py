"""Which layers are quantized, and what the files take."""

from __future__ import annotations

import torch

from qbench.contracts import Scheme
from qbench.experiment.coverage import coverage
from qbench.quantization import quantize


def test_what_is_left_and_what_it_takes_is_counted(tiny, tmp_path):
    quantized = quantize(tiny(), "rtn", Scheme(3, 32))
    quantized.save(tmp_path / "saved")
    weights = dict(quantized.weights)
    lost = weights.popitem()[0]
    facts = coverage(quantized.model, weights, tmp_path / "saved", torch.bfloat16)
    assert (facts["linear"], facts["blocks"], facts["quantized"]) == (15, 14, 13)
    assert facts["left"] == [lost] and facts["bits"] == {"3": 13}
    parameters = sum(tensor.numel() for tensor in quantized.model.parameters())
    assert facts["original_bytes"] == 2 * parameters
    files = list((tmp_path / "saved").glob("*.safetensors"))
    assert facts["bytes"] == sum(file.stat().st_size for file in files) > 0


def test_a_recipe_that_matched_nothing_shows(tiny, tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    facts = coverage(model, {}, tmp_path, torch.float32)
    assert facts["quantized"] == 0 and len(facts["left"]) == 14 and facts["bits"] == {}
    assert facts["bytes"] >= facts["original_bytes"], "as large as before, with its header"
