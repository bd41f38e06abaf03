"""What is damaged: small models in every format, records, grids and data, the same every time."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import qbench
from qbench import Scheme
from qbench.checkpoint.write_folder import save_checkpoint, unquantized_tensors, write_model_folder
from qbench.contracts import Scheme as RecordedScheme
from qbench.experiment.store import Store
from qbench.export import export
from qbench.models.blocks import quantizable
from qbench.records import Cell, Record, Score
from qbench.tasks.data import CALIBRATION_TABLE
from qbench.tasks.folder import write_parquet
from qbench.tasks.registry import task_tables

METHODS = {"rtn": {}, "alternating": {}, "unisvq": {"epochs": 0}}  # one per format, no training
MODEL = "dense"  # the folder that grids name


def originals(folder: Path) -> list[Path]:
    """A folder of each kind; of those of models it is judged whether their damage shows."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    config = LlamaConfig(**shape, num_key_value_heads=1, num_hidden_layers=2, vocab_size=64)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:63]
    symbols = [*alphabet, "AB"]
    merges = [("A", "B")]  # GGUF holds no tokenizer without merges
    backend = Tokenizer(BPE(vocab={text: i for i, text in enumerate(symbols)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="!")
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    folder.mkdir()
    paths = []

    def saved(name: str, method: str, scheme: Scheme, shard_bytes: int) -> Path:
        torch.manual_seed(0)
        quantizer = qbench.get_method(method, **METHODS[method])
        made = qbench.quantize(LlamaForCausalLM(config), quantizer, scheme, tokens)
        parts = (made.model, tokenizer, made.weights, made.manifest, {})
        return save_checkpoint(folder / name, *parts, shard_bytes=shard_bytes)

    for method in METHODS:
        paths.append(saved(method, method, Scheme(3, 16), 10**9))
    paths.append(saved("shards", "rtn", Scheme(3, 16), 20_000))
    symmetric = saved("symmetric", "rtn", Scheme(4, 32, True), 10**9)
    paths.append(export(symmetric, "gptq", folder / "gptq"))
    paths.append(export(symmetric, "dense", folder / "dense"))
    paths.append(awq(folder / "awq", LlamaForCausalLM(config), tokenizer))
    for name in ("gguf", "gguf-model"):
        (folder / name).mkdir()
    (folder / "gguf" / "model.gguf").write_bytes(gguf_bytes())
    export(symmetric, "gguf", folder / "gguf-model" / "model.gguf")
    return [
        *paths,
        folder / "gguf",
        folder / "gguf-model",
        records(folder / "records"),
        grids(folder / "grids", folder / MODEL),
        data(folder / "data"),
    ]


def awq(folder: Path, model: Any, tokenizer: Any) -> Path:
    """A folder in AWQ's GEMM layout, of random words."""
    draw = torch.Generator().manual_seed(0)
    names = list(quantizable(model))
    tensors = unquantized_tensors(model, dict.fromkeys(names))
    for name in names:
        out, inputs = model.get_submodule(name).weight.shape
        for part, rows in (("qweight", inputs), ("qzeros", inputs // 32)):
            words = torch.randint(-(2**31), 2**31, (rows, out // 8), generator=draw)
            tensors[f"{name}.{part}"] = words.to(torch.int32)
        tensors[f"{name}.scales"] = torch.rand((inputs // 32, out), generator=draw).half()
    entry = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    return write_model_folder(folder, model.config, tokenizer, tensors, entry)


def gguf_bytes() -> bytes:
    """A small file with strings, arrays and tensors of two types."""
    import gguf
    import numpy as np

    with tempfile.TemporaryDirectory() as scratch:
        writer = gguf.GGUFWriter(Path(scratch) / "a", "llama")
        writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
        writer.add_uint32("llama.block_count", 1)
        blocks = np.zeros((8, 18), dtype=np.uint8)
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor("blk.0.attn_q.weight", blocks, raw_dtype=kind)
        writer.add_tensor("token_embd.weight", np.zeros((3, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (Path(scratch) / "a").read_bytes()


def records(folder: Path) -> Path:
    """A run's folder with two records."""
    store = Store(folder)
    for bits in (2, 3):
        cell = Cell(
            model="m", revision="r", method="rtn", params={}, source="0" * 12,
            scheme=RecordedScheme(bits, 64), calibration=None, tasks=(), dtype="float32", seed=0,
        )  # fmt: skip
        score = Score(
            task="wikitext", metric="word_perplexity", value=9.5, stderr=0.1, n=5,
            higher_is_better=False,
        )  # fmt: skip
        store.write_record(Record(id=cell.id, cell=cell, status="ok", scores=(score,)))
    return folder


def grids(folder: Path, model: Path) -> Path:
    """A grid file with most of its keys, in JSON, which is YAML."""
    folder.mkdir()
    grid = {
        "model": [str(model)],
        "bits": [2, 3],
        "methods": ["none", "rtn", "gptq"],
        "tasks": ["wikitext", "arc_easy"],
        "preset": "quick",
        "group_size": 16,
        "symmetric": False,
        "set": {"gptq": {"damp": [0.01, 0.1]}, "arc_easy": {"limit": [4]}},
        "data": "mini",
        "seed": 0,
        "device": "cpu",
        "dtype": "float32",
        "out": str(folder.parent / "out"),
        "time_limit": 60.0,
    }
    (folder / "grid.yaml").write_text(json.dumps(grid, indent=1))
    return folder


def data(folder: Path) -> Path:
    """A data folder with a few rows of three tables."""
    tables = task_tables()
    for table in (tables["wikitext"], tables["arc_easy"], CALIBRATION_TABLE):
        for split in table.splits:
            path = folder / table.folder / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_parquet([json.loads(json.dumps(table.example))] * 8, path)
    return folder
