"""What a worker is handed, and what it hands back: files, so that nothing of ours is imported.

A worker is started as `python SCRIPT ORDER` with the Python of its package's environment. ORDER is
a JSON file: `model` (a folder, or a GGUF file), `tokens` (a file of numpy, (samples, length) int64,
or null), `output` (an empty folder), `settings`, `device`, `threads`. It leaves in that folder

    checkpoint/ or checkpoint.gguf  what the package writes for its users
    dequantized.safetensors         optional: LAYER.weight (out, in) as the package dequantizes it
    codes.safetensors               optional: LAYER.codes (out, in) uint8, LAYER.scale and
                                    LAYER.zero_point (out, groups), for weights
                                    scale * (code - zero_point) that no reader of ours takes out of
                                    the checkpoint
    result.json                     `seconds` and `peak_bytes` of quantizing, `settings` as used

result.json comes last: where it is absent, the worker has failed.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # not every environment has it
    import torch


@dataclass
class Work:
    """An order, and what it has cost so far."""

    model: str
    output: Path
    settings: dict[str, Any]
    device: str
    threads: int
    tokens: torch.Tensor | None = None
    seconds: float = 0.0
    peak_bytes: int = 0
    used: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """Where the package's own files go."""
        return self.output / "checkpoint"

    @property
    def parameters(self) -> dict[str, Any]:
        """Hyper-parameters of the method."""
        return dict(self.settings["parameters"])

    @property
    def calibration(self) -> torch.Tensor:
        """(samples, length) int64, of a method that calibrates; ValueError without tokens."""
        if self.tokens is None:
            raise ValueError(f"{self.settings['method']} calibrates, and was handed no tokens")
        return self.tokens

    def rows(self) -> list[list[int]]:
        """The calibration tokens as lists; empty where there are none."""
        return [] if self.tokens is None else self.tokens.tolist()

    @contextmanager
    def quantizing(self) -> Iterator[None]:
        """The time and the peak of memory of what is done in this block are what it costs."""
        _reset_peak(self.device)
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
        self.peak_bytes = max(self.peak_bytes, _peak(self.device))

    def write_dequantized(self, weights: Mapping[str, torch.Tensor]) -> None:
        """LAYER -> (out, in), as the package dequantizes them."""
        named = {f"{layer}.weight": weight for layer, weight in weights.items()}
        _save(named, self.output / "dequantized.safetensors")

    def write_codes(self, parts: Mapping[str, torch.Tensor]) -> None:
        """`LAYER.codes`, `LAYER.scale`, `LAYER.zero_point`."""
        _save(parts, self.output / "codes.safetensors")


def run(quantize: Callable[[Work], None]) -> None:
    """What every worker does: read the order, quantize, and say what it took."""
    order = json.loads(Path(sys.argv[1]).read_text())
    output = Path(order["output"])
    work = Work(order["model"], output, order["settings"], order["device"], order["threads"])
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(work.threads)
    if order["tokens"] is not None:
        work.tokens = _load(order["tokens"])
    quantize(work)
    result = {"seconds": work.seconds, "peak_bytes": work.peak_bytes, "settings": work.used}
    part = work.output / "result.part"
    part.write_text(json.dumps(result, default=str))
    os.replace(part, work.output / "result.json")


def linear_layers(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers inside the decoder's blocks: those with a number in their name."""
    import torch

    for name, module in model.named_modules():
        numbered = any(word.isdecimal() for word in name.split("."))
        if isinstance(module, torch.nn.Linear) and numbered:
            yield name, module


def older_folder(work: Work) -> Path:
    """The model's folder with a config.json that transformers 4 understands.

    Of version 5 it does not see `rope_parameters`, and would take a base of its own in their place.
    ValueError where layers have different ones, which it could not be told.
    """
    place = work.output.parent / "older"
    place.mkdir()
    for file in Path(work.model).iterdir():
        (place / file.name).symlink_to(file.absolute())
    config = json.loads((place / "config.json").read_text())
    rotary = dict(config.pop("rope_parameters", None) or {})
    if any(isinstance(value, dict) for value in rotary.values()):
        raise ValueError(f"transformers 4 has no rope_parameters by layer, which are {rotary}")
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rotary:
            config[key] = rotary.pop(key)
    if rotary.get("rope_type", "default") != "default":
        config["rope_scaling"] = rotary
    (place / "config.json").unlink()
    (place / "config.json").write_text(json.dumps(config))
    return place


def copy_tokenizer(work: Work) -> None:
    """Put the tokenizer's files beside the checkpoint; an older transformers cannot read them."""
    for pattern in ("tokenizer*", "special_tokens_map.json", "*.jinja", "vocab.*", "merges.txt"):
        for file in Path(work.model).glob(pattern):
            shutil.copy(file, work.checkpoint)


def _load(path: str) -> torch.Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.load(path))


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(owned, str(path))


def _reset_peak(device: str) -> None:
    """Begin to measure as `qbench.environment.reset_peak_memory` does."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    gc.collect()
    with suppress(OSError, AttributeError):  # elsewhere the peak is that of the whole process
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> int:
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for line in lines:
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0
