"""How fast a model reads and writes on a GPU, packed and dense in turns, without Python's delays.

A turn replays the graphs of `qbench.latency.decoding`. The packed model's products are held against
the dense one's by the logits after the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qbench.errors import QbenchError
from qbench.kernels.dispatch import served
from qbench.latency.decoding import Decoder, Fusion
from qbench.latency.end_to_end import Speed, Variant, prompt_of, require_positions, speed_of
from qbench.latency.gpu import require_gpu
from qbench.quantization import load

VARIANTS = (Variant(True, "bfloat16"), Variant(False, "bfloat16"))
# Of the logits, relative, in norm: bfloat16 rounds after every layer, and differences grow.
LIMIT = 0.2


def compare(
    folder: Path, prompt: int, tokens: int, repeats: int, progress: Callable[[str], None]
) -> list[Speed]:
    """A folder that `load` reads, packed and dense: batch 1, greedy, on the GPU.

    The arguments and errors are those of `qbench.latency.end_to_end.compare`. ConfigError where
    there is no GPU.
    """
    require_gpu()

    def loaded(variant: Variant) -> Callable[[], Any]:
        return lambda: load(folder, variant.dtype, variant.packed).model.to("cuda")

    makers = {variant.name: loaded(variant) for variant in VARIANTS}
    return time_models(makers, prompt, tokens, repeats, progress)


def time_models(
    makers: Mapping[str, Callable[[], Any]],
    prompt: int,
    tokens: int,
    repeats: int,
    progress: Callable[[str], None],
    fusion: Fusion = "token",
) -> list[Speed]:
    """The models that the functions give, each in its turn; the last one is the reference.

    fusion: of `Decoder`. Peaks are the bytes of a model's tensors and what reading and
    writing adds to them.
    QbenchError where the logits of one are not those of the reference, or it takes fewer tokens.
    """
    decoders: dict[str, Decoder] = {}
    peaks: dict[str, int] = {}
    kernels: dict[str, dict[str, int]] = {}
    for name, make in makers.items():
        progress(f"loading {name}")
        model = make()
        require_positions(model, prompt, tokens)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        served(clear=True)
        ids = prompt_of(prompt, model.config.vocab_size)
        decoders[name] = Decoder(model, ids, tokens, fusion)
        once(decoders[name])
        kernels[name] = served(clear=True)
        peaks[name] = bytes_of(model) + torch.cuda.max_memory_allocated() - before
    *others, reference = decoders
    errors = {name: check(name, decoders[name], decoders[reference]) for name in others}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in decoders}
    for turn in range(repeats):
        for name, decoder in decoders.items():
            progress(f"round {turn + 1}/{repeats}, {name}")
            times[name].append(once(decoder))
    speeds = []
    for name, pairs in times.items():
        speed = speed_of(name, pairs, prompt, tokens, peaks[name], kernels[name])
        speed = replace(
            speed,
            error=errors.get(name),
            step_error=decoders[name].difference,
            refused=decoders[name].refused,
        )
        speeds.append(speed)
    return speeds


def bytes_of(model: torch.nn.Module) -> int:
    """Of the parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def once(decoder: Decoder) -> tuple[float, float]:
    """Seconds from the prompt to the first new token, and seconds of all the others."""
    begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    begin.record()
    decoder.read()
    middle.record()
    decoder.write()
    end.record()
    end.synchronize()
    return begin.elapsed_time(middle) / 1000, middle.elapsed_time(end) / 1000


def check(name: str, decoder: Decoder, reference: Decoder) -> float:
    """How far the logits after the prompt are apart, relative, in norm. QbenchError above LIMIT."""
    expected = reference.logits.double()
    error = ((decoder.logits.double() - expected).norm() / expected.norm()).item()
    if not error <= LIMIT:
        raise QbenchError(
            f"{name} is wrong: its logits are {error:.2g} away from those of the dense model, at "
            f"most {LIMIT:g} was expected"
        )
    return error
