"""A GGUF file as a model: what transformers reads of it, and what is put right or refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import nullcontext

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

import qbench
from qbench import Scheme
from qbench.checkpoint.write_folder import unquantized_tensors
from qbench.errors import ConfigError, ModelError, QbenchError, StoreError
from qbench.exchange.gguf_model import export_model_gguf
from qbench.export import export
from qbench.files.gguf_header import read_header
from qbench.models.blocks import quantizable
from qbench.models.gguf_file import bits_of_blocks, quantized_as
from qbench.models.identity import resolved_revision
from qbench.models.loading import load_model, load_skeleton
from qbench.models.pretrained import ALONE, alone
from qbench.models.source import find_model
from qbench.models.tokenizer_trial import try_gguf_tokenizer
from qbench.quantization import read_model, stored_as
from qbench.tasks.beginnings import trained_bos

PROMPT = torch.arange(40)[None] * 7 % 250
TEXTS = ("Hello 123 the other 2048's", "naïve\n\n  thé", "<s>the</s>")
ASKED = (
    "--data", "mini", "--tasks", "wikitext", "--set", "wikitext.length=64",
    "--set", "wikitext.limit=2", "--dtype", "float32",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    transformers.__version__ < "5", reason="transformers 4 reads GGUF tokenizers otherwise"
)


@pytest.fixture(autouse=True)
def untried(monkeypatch):
    """Without the process in which tokenizers are tried, which takes seconds a file."""
    monkeypatch.setattr("qbench.models.gguf_tokenizer.try_gguf_tokenizer", lambda *_: None)


def byte_level(digits=True):
    """A byte-level BPE with three merges that splits text as SmolLM's does, or GPT-2's."""
    merges = [("t", "h"), ("th", "e"), ("1", "2")]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    tokenizer = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    apart = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([apart, split]) if digits else split
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """`made(bits, **config)`: a tiny Llama with dequantized weights, and its GGUF file."""

    def make(bits=4, tokenizer=None, **config):
        shape = {"vocab_size": 280, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
        model = tiny(**(shape | config))
        weights = {}
        if bits:
            quantized = qbench.quantize(model, "rtn", Scheme(bits, 32, True))
            weights = quantized.weights
        others = unquantized_tensors(model, weights)
        path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
        export_model_gguf(model.config, tokenizer or byte_level(), weights, others.items(), path)
        return model, path

    return make


@pytest.fixture(scope="module")
def file(made):
    """A file of 4 bits that a test may copy."""
    return made()[1]


def rewritten(path, target, metadata=None, tensors=None, drop=()):
    """The same file with other metadata (None leaves a key out) and F32 tensors."""
    reader = gguf.GGUFReader(path)
    changed = metadata or {}
    architecture = changed.get("general.architecture", "llama")
    writer = gguf.GGUFWriter(target, architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in changed:
            continue
        kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), kind, sub_type=inner)
    for key, value in changed.items():
        if value is not None and key != "general.architecture":
            kind = gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        if tensor.name not in drop and tensor.name not in (tensors or {}):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, numbers in (tensors or {}).items():
        writer.add_tensor(name, np.asarray(numbers, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def logits(model):
    with torch.no_grad():
        return model(PROMPT).logits


@pytest.mark.parametrize("bits", [0, 4, 8], ids=["dense", "Q4_0", "Q8_0"])
def test_the_model_of_a_file_computes_what_was_written(made, bits):
    expected, path = made(bits)
    source = find_model(str(path))
    model, tokenizer = load_model(source, "float32")
    assert torch.equal(logits(model), logits(expected))
    ours = byte_level()
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == ours(text)["input_ids"]
    label = {0: None, 4: "gguf Q4_0", 8: "gguf Q8_0"}[bits]
    assert stored_as(source) == quantized_as(source) == label
    if bits:
        assert bits_of_blocks(source) == bits + 0.5
    assert model.to(torch.bfloat16).dtype == torch.bfloat16, "it is an ordinary model"


def test_a_stretched_rope_is_that_of_the_file(made):
    """transformers takes it for a plain one; here its parameters come out of the divisors."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    expected, path = made(4, rope_parameters=rope)
    model, _ = load_model(find_model(str(path)), "float32")
    assert model.config.rope_parameters == rope
    torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=1e-5)


def test_an_export_with_a_stretched_rope_is_proven(tiny, tmp_path, monkeypatch):
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    model = tiny(vocab_size=280, hidden_size=64, head_dim=32, rope_parameters=rope)
    quantized = qbench.quantize(model, "rtn", Scheme(4, 32, True), tokenizer=byte_level())
    own = quantized.save(tmp_path / "own")
    export(own, "gguf", tmp_path / "x.gguf")
    monkeypatch.setattr("qbench.exchange.gguf_model.rope_divisors", lambda config: None)
    with pytest.raises(StoreError, match="written as gguf reads back as another model"):
        export(own, "gguf", tmp_path / "y.gguf")


def test_another_stretch_is_refused(file, tmp_path):
    for divisors in (np.linspace(1, 2, 16), np.full(16, 2.0), np.ones(7) * 3):
        path = rewritten(file, tmp_path / "x.gguf", tensors={"rope_freqs.weight": divisors})
        with pytest.raises(ModelError, match="rope_freqs.weight stretches the rotary embedding in"):
            load_skeleton(find_model(str(path)))
    path = rewritten(file, tmp_path / "y.gguf", tensors={"rope_freqs.weight": np.ones(16)})
    load_skeleton(find_model(str(path)))


def test_what_lies_beside_a_file_is_not_read(file, tmp_path):
    path = shutil.copy(file, tmp_path / "tiny.gguf")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text('{"bos_token": "the", "eos_token_id": 5, "add_bos_token": 1}')
    os.mkfifo(tmp_path / "pipe")
    model, tokenizer = load_model(find_model(str(path)), "float32")
    assert tokenizer.bos_token == "<s>" and model.generation_config.eos_token_id != 5


def test_a_file_is_what_it_holds(made, file, tmp_path):
    renamed = shutil.copy(file, tmp_path / "other.gguf")
    _, other = made(4, seed=1)
    revisions = [resolved_revision(find_model(str(path))) for path in (file, renamed, other)]
    assert revisions[0] == revisions[1] != revisions[2]


def test_a_folder_with_one_file_and_nothing_else_is_that_file(file, tmp_path):
    shutil.copy(file, tmp_path / "a.gguf")
    (tmp_path / "README.md").write_text("a model")
    assert find_model(str(tmp_path)).path == tmp_path / "a.gguf"
    shutil.copy(file, tmp_path / "b.gguf")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files \(a.gguf, b.gguf\); give one"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert find_model(str(tmp_path)).gguf is None


def test_what_is_no_gguf_file_is_said(file, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGML....")
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "away.gguf").symlink_to(file)
    for name, message in {
        "model.gguf": "is no GGUF file .it begins with b'GGML'",
        "pipe.gguf": "is no ordinary file",
        "none.gguf": "there is no file",
    }.items():
        with pytest.raises(ModelError, match=message):
            find_model(str(tmp_path / name))
    with pytest.raises(StoreError, match="is a link out of its folder"):
        load_skeleton(find_model(str(tmp_path / "away.gguf")))


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"split.count": 3}, "is one of 3 files that make up a model"),
        ({"llama.block_count": 2**30}, "llama.block_count=1073741824 is out of range"),
        ({"llama.embedding_length": 2**20}, "parameters, and the files hold"),
        ({"llama.embedding_length": 2**12}, "parameters, and the files hold|of another shape"),
        ({"tokenizer.chat_template": "x" * 1_000_001}, "a text of 1,000,001 characters"),
        ({"general.tags": ["x"] * 2000}, "words and numbers, more than any model"),
        ({"general.architecture": "mystery"}, "architecture mystery is not supported"),
        ({"tokenizer.ggml.tokens": None}, "has no tokenizer"),
        ({"tokenizer.ggml.model": None}, "does not say what kind of tokenizer it has"),
        ({"tokenizer.ggml.pre": "mystery"}, "names the pre-tokenizer 'mystery'"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type='yarn', and transformers' reader"),
        ({"llama.rope.scaling.factor": 4.0}, "rope.scaling.factor=4.0"),
        ({"llama.attention.key_length": 16}, "attention.key_length=16, .* takes head_dim=32"),
        ({"llama.attention.sliding_window": 512}, "sliding_window=512, .* sliding_window=None"),
    ],
)
def test_metadata_that_would_be_believed_or_left_out(
    file, tmp_path, metadata, message, monkeypatch
):
    monkeypatch.setattr("qbench.models.gguf_file.MOST_WORDS", 2000)
    path = rewritten(file, tmp_path / "x.gguf", metadata)
    with pytest.raises(QbenchError, match=message):
        load_model(find_model(str(path)), "float32")


def test_metadata_that_nobody_knows_are_refused_by_name(file, tmp_path):
    path = rewritten(file, tmp_path / "x.gguf", {"llama.mystery": 3})
    with pytest.raises(ModelError, match="says llama.mystery=3, .* takes nothing of it; give"):
        load_skeleton(find_model(str(path)))
    path = rewritten(file, tmp_path / "y.gguf", {"llama.mystery": 0, "gemma3.mystery": 3})
    load_skeleton(find_model(str(path)))  # 0 is no statement, and the other is of no Llama


def test_tensors_that_are_missing_or_have_no_place_are_named(file, tmp_path):
    path = rewritten(file, tmp_path / "x.gguf", drop=["blk.1.ffn_up.weight"])
    with pytest.raises(ModelError, match=r"1 tensors are missing \(model.layers.1.mlp.up_proj"):
        load_model(find_model(str(path)), "float32")
    bias = {"blk.0.attn_q.bias": np.ones(64)}
    path = rewritten(file, tmp_path / "y.gguf", tensors=bias)
    with pytest.raises(ModelError, match=r"no place for 1 tensors of the file \(blk.0.attn_q.bias"):
        load_model(find_model(str(path)), "float32")
    norm = {"output_norm.weight": np.full(64, np.nan)}
    path = rewritten(file, tmp_path / "z.gguf", tensors=norm)
    with pytest.raises(ModelError, match="64 of the 64 numbers of model.norm.weight are NaN"):
        load_model(find_model(str(path)), "float32")
    short = {"output_norm.weight": np.ones(63)}
    path = rewritten(file, tmp_path / "s.gguf", tensors=short)
    with pytest.raises(ModelError, match=r"of another shape \(model.norm.weight"):
        load_model(find_model(str(path)), "float32")


def test_beginnings_and_whole_words_are_llama_cpps(made, tmp_path):
    _, file = made(4, byte_level(False))
    vocabulary = gguf.GGUFReader(file).fields["tokenizer.ggml.tokens"].contents()
    vocabulary[-1] = "xyz"  # a word that no merges make
    changes = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": vocabulary}
    path = rewritten(file, tmp_path / "x.gguf", changes | {"tokenizer.ggml.add_bos_token": None})
    _, tokenizer = load_model(find_model(str(path)), "float32")
    bos = tokenizer.bos_token_id
    assert tokenizer("xyz")["input_ids"] == [bos, len(vocabulary) - 1]
    path = rewritten(file, tmp_path / "y.gguf", changes | {"tokenizer.ggml.add_bos_token": False})
    _, tokenizer = load_model(find_model(str(path)), "float32")
    assert tokenizer("xyz")["input_ids"] == [len(vocabulary) - 1]
    assert trained_bos(tokenizer, "llama") is None, "no task puts one there, either"


@pytest.mark.slow
def test_a_tokenizer_is_tried_in_a_process_of_its_own(file, tmp_path, monkeypatch):
    monkeypatch.setattr("qbench.models.tokenizer_trial.cache_folder", lambda: tmp_path / "cache")
    broken = rewritten(file, tmp_path / "x.gguf", {"tokenizer.ggml.merges": ["no"] * 3})
    for path, problem in ((file, None), (broken, "the tokenizer in this GGUF file cannot be used")):
        header = read_header(path)
        with (
            alone(path) as folder,
            pytest.raises(StoreError, match=problem) if problem else nullcontext(),
        ):
            try_gguf_tokenizer(folder / ALONE, header.nbytes, sum(header.arrays.values()))
    assert len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 1


def test_the_label_is_what_is_there(file, tmp_path):
    stated = {"general.file_type": int(gguf.LlamaFileType.MOSTLY_Q8_0)}
    path = rewritten(file, tmp_path / "x.gguf", stated)
    assert stored_as(find_model(str(path))) == "gguf Q4_0"
    assert read_header(path).metadata["general.file_type"] == stated["general.file_type"]


def test_a_missing_package_is_named(file, monkeypatch):
    source = find_model(str(file))
    for name in ("gguf", "gguf.constants"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "qbench.files.gguf_header")
    with pytest.raises(ModelError, match="needs the package 'gguf', which is not installed; `pip"):
        load_skeleton(source)


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_it_is_judged_under_its_own_name_and_rounded_again_only_when_asked(command, made, tmp_path):
    model, path = made()
    out = tmp_path / "out"
    code, text, said = command("run", "--model", path, "--methods", "none", *ASKED, "--out", out)
    assert code == 0, said
    (record,) = [json.loads(file.read_text()) for file in (out / "records").glob("*.json")]
    assert record["cell"]["stored_as"] == "gguf Q4_0" and "gguf Q4_0" in " ".join(text.split())
    assert record["bits_per_weight"]["total"] == 4.5
    code, text, said = command("eval", path, *ASKED)
    assert code == 0, said
    (perplexity,) = [s for s in record["scores"] if s["metric"] == "perplexity"]
    assert f" {perplexity['value']:.0f} " in text
    asked = ("--method", "rtn", "--bits", "3", "--group-size", "32")
    code, _, said = command("quantize", *asked, "--model", path, "-o", tmp_path / "again")
    assert code == 2 and "quantized already, by gguf Q4_0 at 4.50 bits" in " ".join(said.split())
    code, _, said = command(
        "run", "--model", path, "--methods", "rtn", *asked[2:], *ASKED, "--out", out
    )
    assert code == 2 and "is quantized already (gguf Q4_0)" in " ".join(said.split())
    again = ("-o", tmp_path / "again", "--requantize")
    code, _, said = command("quantize", *asked, "--model", path, *again)
    assert code == 0, said
    loaded = qbench.load(tmp_path / "again", "float32", packed=False)
    assert set(loaded.weights) == set(quantizable(model))
    assert loaded.tokenizer(TEXTS[0])["input_ids"] == byte_level()(TEXTS[0])["input_ids"]


def test_quantizing_it_by_name_is_refused_too(file):
    with pytest.raises(ConfigError, match="quantized already, by gguf Q4_0"):
        qbench.quantize(str(file), "rtn", Scheme(3, 32))
    assert read_model(find_model(str(file)), "float32").weights == {}
