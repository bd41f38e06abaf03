"""How fast a saved model reads and writes, packed and dense, in turns; and its peak of memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qbench.checkpoint.folder import bytes_on_disk
from qbench.environment import (
    peak_memory,
    reset_peak_memory,
    resident_memory,
    return_large_blocks,
)
from qbench.errors import ConfigError, QbenchError, ending_of
from qbench.kernels.dispatch import served
from qbench.kernels.registry import load_plugin, plugin_files
from qbench.quantization import load

WARMED = 4 << 30  # bytes of a folder beyond which libraries are a small share of its memory
PEAK_TOKENS = 4  # written where the peak of memory is measured: more add next to nothing


class Variant(NamedTuple):
    """A way to load the model: with packed weights or dense ones, computing in a dtype."""

    packed: bool
    dtype: str

    @property
    def name(self) -> str:
        """Such as `packed bfloat16`."""
        return f"{'packed' if self.packed else 'dense'} {self.dtype}"


VARIANTS = (
    Variant(True, "bfloat16"),
    Variant(False, "bfloat16"),
    Variant(True, "float32"),
    Variant(False, "float32"),
)


@dataclass(frozen=True)
class Speed:
    """One model's medians, with the smallest and the largest of the repetitions.

    prefill, decode: tokens per second. first_token: seconds from the prompt to the first new token.
    peak_bytes: of a process that loads the model and does the same once, beyond what the process
    had before, its libraries among it where the folder is smaller than `WARMED`. kernels: how many
    products each kernel served. error: of the logits after the prompt, relative to the dense
    model's, in norm, where it was measured. step_error: of the logits of a step, relative to those
    of the model's own modules, where it is computed in another way; refused: why it is not, where
    that was asked for.
    """

    name: str
    prefill: tuple[float, float, float]
    decode: tuple[float, float, float]
    first_token: float
    peak_bytes: int
    kernels: dict[str, int]
    error: float | None = None
    step_error: float | None = None
    refused: str | None = None


def compare(
    folder: Path,
    prompt: int,
    tokens: int,
    repeats: int,
    threads: int | None,
    progress: Callable[[str], None],
) -> list[Speed]:
    """A folder that `load` reads, in all VARIANTS: batch 1, greedy, on the CPU.

    prompt, tokens: how many are read and written. Each model takes its turn, `repeats` times after
    one round that warms up. StoreError where the folder cannot be read; ConfigError where these are
    more tokens than the model takes.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    models = {}
    for variant in VARIANTS:
        models[variant] = load(folder, variant.dtype, variant.packed).model
        require_positions(models[variant], prompt, tokens)
    times: dict[Variant, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
    kernels: dict[Variant, dict[str, int]] = {}
    for turn in range(repeats + 1):
        for variant, model in models.items():
            progress(f"round {turn + 1}/{repeats + 1}, {variant.name}")
            served(clear=True)  # forgets what the variant before it counted
            seconds = once(model, prompt, tokens)
            kernels[variant] = served(clear=True)
            if turn > 0:
                times[variant].append(seconds)
    speeds = []
    for variant in VARIANTS:
        peak_bytes = peak_of(folder, variant, prompt, tokens)
        speed = speed_of(variant.name, times[variant], prompt, tokens, peak_bytes, kernels[variant])
        speeds.append(speed)
    return speeds


def speed_of(
    name: str,
    times: Sequence[tuple[float, float]],
    prompt: int,
    tokens: int,
    peak_bytes: int,
    kernels: dict[str, int],
) -> Speed:
    """The speed of a model of that name, from what `once` gave in each repetition.

    prompt, tokens: how many were read and written. peak_bytes, kernels: see `Speed`.
    """
    prefill = [prompt / first for first, _ in times]
    # All but the first token are written after the prompt's pass, which gives the first.
    decode = [(tokens - 1) / others for _, others in times]
    first_token = statistics.median(first for first, _ in times)
    return Speed(name, spread(prefill), spread(decode), first_token, peak_bytes, kernels)


def require_positions(model: Any, prompt: int, tokens: int) -> None:
    """ConfigError where a prompt and what is written after it are more tokens than a model takes.

    model: of transformers; one that states no number of positions takes any.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(most, int) and prompt + tokens > most:
        raise ConfigError(
            f"--prompt {prompt} and --tokens {tokens} are {prompt + tokens} tokens, and the model "
            f"takes {most}; give fewer of one of them"
        )


@torch.inference_mode()
def once(model: Any, prompt: int, tokens: int) -> tuple[float, float]:
    """Seconds from the prompt to the first new token, and seconds of the `tokens` - 1 others."""
    ids = prompt_of(prompt, model.config.get_text_config().vocab_size)
    started = time.perf_counter()
    output = model(ids, use_cache=True, logits_to_keep=1)
    first = time.perf_counter()
    for _ in range(tokens - 1):
        ids = output.logits[:, -1:].argmax(-1)  # (1, 1)
        output = model(
            ids, use_cache=True, past_key_values=output.past_key_values, logits_to_keep=1
        )
    return first - started, time.perf_counter() - first


def prompt_of(length: int, vocabulary: int) -> Tensor:
    """Token ids (1, length), always the same."""
    return (torch.arange(length)[None] * 7 + 1) % vocabulary


def peak_of(folder: Path, variant: Variant, prompt: int, tokens: int) -> int:
    """`Speed.peak_bytes` on the CPU, measured in a process of its own, with as many threads.

    QbenchError where that fails.
    """
    arguments = [
        str(folder),
        str(int(variant.packed)),
        variant.dtype,
        str(prompt),
        str(min(tokens, PEAK_TOKENS)),
        str(torch.get_num_threads()),
        *plugin_files(),
    ]
    command = [sys.executable, "-P", "-m", "qbench.latency.end_to_end", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise QbenchError(
            f"the peak memory of {folder} could not be measured: the process that measures it "
            f"{ending_of(done.returncode, done.stderr)}"
        )
    return int(done.stdout.split()[-1])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, least, most)."""
    return statistics.median(values), min(values), max(values)


def main() -> None:
    """Print the peak of memory for the arguments that `peak_of` gives."""
    folder, packed, dtype, prompt, tokens, threads, *plugins = sys.argv[1:]
    torch.set_num_threads(int(threads))
    for path in plugins:
        load_plugin(Path(path))

    def use() -> None:
        model = load(folder, dtype, bool(int(packed))).model
        once(model, int(prompt), int(tokens))

    # Kept blocks would be measured or not by where they happen to lie.
    return_large_blocks()
    if bytes_on_disk(Path(folder)) < WARMED:
        use()  # what libraries take with the first model is no model's
    reset_peak_memory("cpu")
    before = resident_memory()
    use()
    print(max(0, peak_memory("cpu") - before))


if __name__ == "__main__":
    main()
