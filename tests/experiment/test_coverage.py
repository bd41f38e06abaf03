"""Which layers are quantized, and what the files take."""

from __future__ import annotations

import pytest
import torch

import qbench
from qbench.contracts import Scheme
from qbench.experiment.coverage import coverage
from qbench.experiment.foreign_cell import as_written
from qbench.quantization import quantize
from qbench.scheme import AS_IT_IS, LayerRule


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


@pytest.mark.parametrize("known", [True, False], ids=["a-cell", "a-model-that-was-read"])
def test_a_layer_that_a_rule_kept_is_left_whether_or_not_the_scheme_is_known(tiny, tmp_path, known):
    """The row of a quantized model itself has no scheme."""
    kept = "model.layers.0.self_attn.q_proj"
    scheme = Scheme(3, 32, rules=(LayerRule(kept, AS_IT_IS), LayerRule("*.down_proj", 8)))
    quantized = quantize(tiny(), "rtn", scheme)
    quantized.save(tmp_path / "saved")
    weights = qbench.load(tmp_path / "saved").weights
    asked = scheme if known else None
    facts = coverage(quantized.model, weights, tmp_path / "saved", torch.bfloat16, asked)
    assert facts["left"] == [kept] and facts["quantized"] == 13
    assert facts["bits"] == {"3": 11, "8": 2}


@pytest.mark.parametrize("read, left", [("dequantized", 0), ("gguf", 0), ("codes", 14)])
def test_weights_that_another_package_gives_dequantized_are_quantized(tiny, tmp_path, read, left):
    quantized = quantize(tiny(), "none", Scheme(3, 32))
    quantized.save(tmp_path / "saved")
    written = {"bytes": 5, "code_bits": 3.0, "read": read}
    quantized.manifest["written"] = written
    facts = coverage(quantized.model, quantized.weights, tmp_path / "saved", torch.bfloat16)
    facts = as_written(facts, quantized)
    assert len(facts["left"]) == left and facts["quantized"] == 14 - left
    assert facts["bits"] == ({} if left else {"3": 14}) and facts["bytes"] == 5
