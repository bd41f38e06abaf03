"""A model that is read and written block by block is the one that is read and written whole."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import FAMILIES
from qbench import Scheme
from qbench.calibration.spool import spooling
from qbench.calibration.streamed import streamed_logits
from qbench.checkpoint.block_files import write_block_files
from qbench.checkpoint.paged import can_be_paged, numbers_in, open_paged
from qbench.contracts import trains
from qbench.errors import MethodError, ModelError, StoreError
from qbench.files.shards import Shards
from qbench.files.written_folder import verify
from qbench.models.source import ModelSource, find_model
from qbench.quantization import quantize, read_model
from qbench.registry import get_method
from samples import token_ids

TOKENS = token_ids(6, 16)
SCHEME = Scheme(3, 16)
METHODS = ("rtn", "gptq", "awq", "flexround", "uniquanf")
# Of the families with Linear, Conv1D and experts all methods; of the others one for each verb that
# sees inputs, and in turns one that folds or trains.
MANY = ("llama", "gpt2-conv1d", "mixtral-experts")


def cases():
    """(family, method), as a product would have 50."""
    others = itertools.cycle(("awq", "uniquanf"))
    for family in FAMILIES:
        marks = () if family in ("llama", "gpt2-conv1d") else pytest.mark.slow
        for name in METHODS if family in MANY else ("gptq", "flexround", next(others)):
            yield pytest.param(family, name, marks=marks, id=f"{family}-{name}")


@pytest.fixture
def folder(family, tokenizer, tmp_path):
    """A saved random model of a family."""
    place = tmp_path / "model"
    family().save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def method_of(name):
    return get_method(name, **({"epochs": 1} if trains(get_method(name)) else {}))


def in_blocks(source, place, name):
    """Quantize block by block, with all hidden states in files; the result that is left."""
    made = []

    def work(files):
        opened = open_paged(source, "float32")
        method = method_of(name)
        quantized = quantize(
            opened.model, method, SCHEME, TOKENS, tokenizer=opened.tokenizer, files=files
        )
        files.finish(
            opened.model, opened.tokenizer, quantized.weights, quantized.manifest, quantized.log
        )
        made.append(quantized)

    with spooling(place.parent, room=0) as spool:
        write_block_files(place, work)
    return made[0], spool


def tensors_of(folder):
    shards = Shards(folder)
    return {name: shards.tensor(name) for name in shards.entries}


def assert_same_folders(whole, pieces):
    """Equal but for the files that the tensors lie in."""
    first, second = tensors_of(whole), tensors_of(pieces)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name
    rest = {path.name for path in whole.iterdir() if "safetensors" not in path.name}
    assert rest == {path.name for path in pieces.iterdir() if "safetensors" not in path.name}
    for name in rest:
        assert (whole / name).read_bytes() == (pieces / name).read_bytes(), name
    assert set(verify(pieces).values()) == {None}


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_paged_model_computes_what_the_whole_one_does(folder, dtype):
    source = find_model(str(folder))
    whole = read_model(source, dtype).model
    paged = open_paged(source, dtype).model
    assert torch.equal(paged(TOKENS).logits, whole(TOKENS).logits)
    expected = [whole(batch).logits for batch in TOKENS.split(4)]
    for logits, same in zip(streamed_logits(paged, TOKENS, 4), expected, strict=True):
        assert torch.equal(logits, same)
    assert numbers_in(source) == sum(tensor.numel() for tensor in tensors_of(folder).values())
    blocks = [t for name, t in paged.state_dict().items() if ".0." in name]
    assert blocks and all(tensor.is_meta for tensor in blocks), "no block stays in memory"


@torch.no_grad()
@pytest.mark.parametrize("family, name", cases(), indirect=["family"])
def test_quantizing_block_by_block_gives_the_same_folder(folder, tmp_path, name):
    source = find_model(str(folder))
    model = read_model(source, "float32")
    whole = quantize(model.model, method_of(name), SCHEME, TOKENS, tokenizer=model.tokenizer)
    whole.save(tmp_path / "whole")
    made, spool = in_blocks(source, tmp_path / "pieces", name)
    assert_same_folders(tmp_path / "whole", tmp_path / "pieces")
    assert bool(spool.mapped) == (name != "rtn")
    assert made.bits_per_weight == whole.bits_per_weight
    assert all(t.is_meta for weight in made.weights.values() for t in weight.to_tensors().values())

    back = find_model(str(tmp_path / "pieces"))
    paged = open_paged(back, "float32")
    expected = read_model(find_model(str(tmp_path / "whole")), "float32").model(TOKENS).logits
    assert torch.equal(torch.cat(list(streamed_logits(paged.model, TOKENS, 6))), expected)
    assert numbers_in(back) == numbers_in(source)


@pytest.fixture
def llama(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "llama")


def change(folder, edit):
    """Let `edit` change the tensors of a folder's only file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_missing_tensor_is_refused_by_name(llama):
    change(llama, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"1 tensors are not in its files, such as .*1.mlp.up_pr"):
        open_paged(find_model(str(llama)), "float32")


def test_another_shape_is_refused_by_name(llama):
    def edit(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(2, 2)

    change(llama, edit)
    with pytest.raises(ModelError, match=r"0.mlp.up_proj.weight has shape \(2, 2\), and the model"):
        open_paged(find_model(str(llama)), "float32")


def test_numbers_that_are_not_finite_are_refused_when_their_block_is_read(llama, tmp_path):
    def edit(tensors):
        tensors["model.layers.1.input_layernorm.weight"][0] = float("nan")

    change(llama, edit)
    with pytest.raises(StoreError, match=r"input_layernorm.weight is not finite"):
        in_blocks(find_model(str(llama)), tmp_path / "pieces", "rtn")
    assert not (tmp_path / "pieces").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"llama"}, "nothing half-written"


def test_a_method_that_fails_leaves_nothing(llama, tmp_path, monkeypatch):
    calls = []

    def fail(self, weight, scheme):
        calls.append(weight)
        if len(calls) > 8:  # in the second block
            raise RuntimeError("no")
        return original(self, weight, scheme)

    kind = type(get_method("rtn"))
    original = kind.quantize_weight
    monkeypatch.setattr(kind, "quantize_weight", fail)
    with pytest.raises(MethodError, match="layer model.layers.1"):
        in_blocks(find_model(str(llama)), tmp_path / "pieces", "rtn")
    assert {path.name for path in tmp_path.iterdir()} == {"llama"}


def test_a_tensor_that_nothing_uses_is_said(llama):
    def edit(tensors):
        tensors["odd"] = torch.zeros(2)

    change(llama, edit)
    with pytest.warns(UserWarning, match="1 tensors of .* are not used, such as odd"):
        open_paged(find_model(str(llama)), "float32")


def test_what_is_read_whole(llama, monkeypatch):
    assert can_be_paged(find_model(str(llama)))
    assert not can_be_paged(find_model(str(llama), trust_remote_code=True))
    partly = ModelSource("a/b", "a/b", None, local=False)
    monkeypatch.setattr("qbench.checkpoint.paged.local_folder", lambda source: llama)
    assert can_be_paged(partly)
    weights = (llama / "model.safetensors").rename(llama / "elsewhere")
    assert not can_be_paged(partly), "the hub's cache holds the config alone"
    weights.rename(llama / "model.safetensors")
    config = (llama / "config.json").read_text()
    foreign = config.replace("{", '{"quantization_config": {"quant_method": "gptq"},', 1)
    (llama / "config.json").write_text(foreign)
    assert not can_be_paged(find_model(str(llama)))
