"""Folders of other packages: every byte has its item, each weight is counted once."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from qbench.errors import StoreError
from qbench.inspection.report import inspect

LAYER = "model.layers.0.mlp.up_proj"
OTHERS = {"model.embed_tokens.weight": torch.zeros(16, 64), "model.norm.weight": torch.zeros(64)}
HQQ = {  # 3 bits, (48, 64) in groups of 32: 96 rows of which ten share a word
    f"{LAYER}.W_q": torch.zeros(10, 32, dtype=torch.int32),
    f"{LAYER}.scale": torch.zeros(96, 1, dtype=torch.float16),
    f"{LAYER}.zero": torch.zeros(96, 1, dtype=torch.float16),
    f"{LAYER}.shape": torch.tensor([48, 64], dtype=torch.int32),
    f"{LAYER}.nbits": torch.tensor([3], dtype=torch.uint8),
}
NF4 = {  # (48, 64) in blocks of 64, whose maxima are quantized
    f"{LAYER}.weight": torch.zeros(48 * 64 // 2, 1, dtype=torch.uint8),
    f"{LAYER}.weight.absmax": torch.zeros(48, dtype=torch.uint8),
    f"{LAYER}.weight.nested_absmax": torch.zeros(1),
    f"{LAYER}.weight.quant_map": torch.zeros(16),
    f"{LAYER}.weight.nested_quant_map": torch.zeros(256),
    f"{LAYER}.weight.quant_state.bitsandbytes__nf4": torch.zeros(70, dtype=torch.uint8),
}
QUANTO = {  # 2 bits, (48, 64) in groups of 32: 96 groups, four codes in a byte
    f"{LAYER}.weight._data._data": torch.zeros(24, 32, dtype=torch.uint8),
    f"{LAYER}.weight._scale": torch.zeros(96, 1),
    f"{LAYER}.weight._shift": torch.zeros(96, 1),
    f"{LAYER}.input_scale": torch.ones(()),
    f"{LAYER}.output_scale": torch.ones(()),
}
INTX = {  # (48, 64) in groups of 32, of any bits
    f"{LAYER}._weight_qdata": torch.zeros(48, 64, dtype=torch.int8),
    f"{LAYER}._weight_scale": torch.zeros(48, 2),
    f"{LAYER}._weight_zero_point": torch.zeros(48, 2, dtype=torch.int8),
}
INT4 = {
    f"{LAYER}._weight_qdata": torch.zeros(48, 32, dtype=torch.uint8),
    f"{LAYER}._weight_scale_and_zero": torch.zeros(2, 48, 2),
}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def folder(place, tensors, entry=None):
    """A folder of these tensors and an embedding and a norm."""
    place.mkdir(exist_ok=True)
    save_file(tensors | OTHERS, place / "model.safetensors")
    config = {} if entry is None else {"quantization_config": entry}
    (place / "config.json").write_text(json.dumps(config))
    return place


def bits(nbytes):
    return 8 * nbytes / (48 * 64)


def test_hqq(tmp_path):
    seen = inspect(folder(tmp_path, HQQ))
    assert (seen.source, seen.quantized_layers, seen.quantized_weights) == ("hqq", 1, 48 * 64)
    assert seen.bits_per_weight == pytest.approx(
        {
            "total": bits(1280 + 384 + 9),
            "codes": bits(1280),
            "scales": bits(192),
            "zero_points": bits(192),
            "other": bits(9),
        }
    )
    stored = sum(tensor.nbytes for tensor in (HQQ | OTHERS).values())
    assert seen.nbytes == stored and seen.model_parameters == 48 * 64 + 16 * 64 + 64


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
def test_bitsandbytes(tmp_path, storage):
    codes = NF4[f"{LAYER}.weight"].view(-1).view(storage).view(-1, 1)  # bnb_4bit_quant_storage
    seen = inspect(folder(tmp_path, NF4 | {f"{LAYER}.weight": codes}, BNB))
    assert (seen.source, seen.method, seen.quantized_weights) == ("bitsandbytes", "nf4", 48 * 64)
    assert seen.bits_per_weight == pytest.approx(
        {
            "total": bits(1536 + 52 + 1088 + 70),
            "codes": 4.0,
            "scales": bits(52),
            "codebooks": bits(1088),
            "other": bits(70),
        }
    )
    assert seen.nbytes == sum(tensor.nbytes for tensor in (NF4 | OTHERS).values())


def test_quanto(tmp_path):
    seen = inspect(folder(tmp_path, QUANTO))
    assert (seen.source, seen.quantized_layers, seen.quantized_weights) == ("quanto", 1, 48 * 64)
    assert seen.bits_per_weight == pytest.approx(
        {
            "total": bits(768 + 768 + 8),
            "codes": 2.0,
            "scales": bits(384),
            "zero_points": bits(384),
            "other": bits(8),
        }
    )
    assert seen.nbytes == sum(tensor.nbytes for tensor in (QUANTO | OTHERS).values())


def torchao(kind):
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_data": {}}}}


def test_torchao(tmp_path):
    seen = inspect(folder(tmp_path, INTX, torchao("IntxWeightOnlyConfig")))
    assert (seen.source, seen.quantized_layers, seen.quantized_weights) == ("torchao", 1, 48 * 64)
    assert seen.bits_per_weight == pytest.approx(
        {"total": 8 + bits(480), "codes": 8.0, "scales": bits(384), "zero_points": bits(96)}
    )
    assert seen.nbytes == sum(tensor.nbytes for tensor in (INTX | OTHERS).values())


def test_torchao_int4(tmp_path):
    seen = inspect(folder(tmp_path, INT4, torchao("PrototypeInt4WeightOnlyConfig")))
    assert (seen.method, seen.quantized_weights) == ("PrototypeInt4WeightOnlyConfig", 48 * 64)
    assert seen.bits_per_weight == pytest.approx(
        {"total": 4 + bits(768), "codes": 4.0, "scales": bits(768)}
    )
    with pytest.raises(StoreError, match="Float8WeightOnlyConfig"):
        inspect(folder(tmp_path, INT4, torchao("Float8WeightOnlyConfig")))
    with pytest.raises(StoreError, match="quant_type"):
        inspect(folder(tmp_path, INT4, {"quant_method": "torchao", "quant_type": []}))


def test_what_is_odd_is_refused(tmp_path):
    with pytest.raises(StoreError, match="load_in_4bit"):
        inspect(folder(tmp_path, NF4, {"quant_method": "bitsandbytes", "load_in_8bit": True}))
    other = NF4 | {f"{LAYER}.weight": torch.zeros(48, 64)}
    with pytest.raises(StoreError, match="no packed codes"):
        inspect(folder(tmp_path, other, BNB))
    other = HQQ | {f"{LAYER}.shape": torch.tensor([3], dtype=torch.int32)}
    with pytest.raises(StoreError, match="not the two sizes"):
        inspect(folder(tmp_path, other))


@pytest.mark.parametrize(
    "shape", [[2**62, 2**62], [48, 128], [-48, -64], [48.0, 64.0], [48, 64, 1]]
)
def test_a_shape_that_hqq_s_codes_cannot_have_is_refused(tmp_path, shape):
    other = HQQ | {f"{LAYER}.shape": torch.tensor(shape)}
    with pytest.raises(StoreError, match="not the two sizes|does not hold .* codes of 3 bits"):
        inspect(folder(tmp_path, other))


FLOAT8 = torch.float8_e4m3fn
UNSAID = {  # by what is left in a folder whose config.json has lost its quantization_config
    "bitsandbytes, 4 bits": NF4,
    "bitsandbytes, 8 bits": {
        f"{LAYER}.SCB": torch.zeros(48),
        f"{LAYER}.weight": torch.zeros(48, 64, dtype=torch.int8),
    },
    "quanto, 8 bits": {f"{LAYER}.weight._data": torch.zeros(48, 64, dtype=torch.int8)},
    "quanto, float8": {f"{LAYER}.weight._data": torch.zeros(48, 64, dtype=FLOAT8)},
    "torchao": INTX,
    "float8": {f"{LAYER}.weight": torch.zeros(48, 64, dtype=FLOAT8)},
    "scales": {
        f"{LAYER}.weight": torch.zeros(48, 64),
        f"{LAYER}.weight_scale_inv": torch.zeros(1, 1),
    },
}


@pytest.mark.parametrize("kind", UNSAID)
def test_codes_of_which_the_config_says_nothing_are_no_dense_weights(tmp_path, kind):
    with pytest.raises(StoreError, match="but its config.json has no quantization_config"):
        inspect(folder(tmp_path, UNSAID[kind]))
