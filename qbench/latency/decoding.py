"""Greedy decoding that a GPU does without waiting for Python: static cache, and CUDA graphs.

Reading the prompt and writing one token are captured once each and replayed. What changes from one
step to the next lives in tensors: the token, the place in the cache, the tokens written so far. On
the CPU the same functions are called instead. A token is written by `qbench.latency.one_token`
where that is shown to give the same logits, else by transformers' modules. Nothing runs in
inference mode, whose tensors have no versions: kernels that prepare x once for several layers go by
these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from qbench.errors import ConfigError
from qbench.kernels.gpu.cuda import products
from qbench.kernels.gpu.cuda.one_row import OneRow
from qbench.kernels.gpu.cuda.plain_row import PlainRow
from qbench.latency.fusion import fused
from qbench.latency.one_token import OneToken

# What is computed by fewer kernels than transformers has: nothing, norms and rotary embeddings, or
# a whole step of writing.
Fusion = Literal["none", "modules", "token"]

ALIGNMENT = 16  # of the cache's places, for which kernels of attention are written
# Between logits of the two ways to compute a step, relative, in norm: differences of roundings grow
# from block to block. What is computed in another way is farther off.
LEAST_LIMIT = 1e-4
ROUNDINGS = 16


class Decoder:
    """A model with a static cache for one prompt of a fixed length, and for what follows it.

    model: a transformers model for causal language modelling, on one device. prompt: token ids
    (1, length). tokens: how many are written, at least 2. fusion: what is fused at most; `modules`
    (`qbench.latency.fusion`) on a GPU alone. refused: why less is fused than that, or None.
    difference: of the logits of a step as it is written from those of the model's modules,
    relative, in norm, where it is another. ConfigError where the model's layers do not look back so
    far.
    """

    def __init__(self, model: Any, prompt: Tensor, tokens: int, fusion: Fusion = "token") -> None:
        from transformers import StaticCache

        device = model.device
        self.tokens = tokens
        self.written = torch.zeros(1, tokens, dtype=torch.int64, device=device)
        self.logits = torch.zeros(1, model.config.vocab_size, device=device)  # after the prompt
        self._model = model
        self.refused: str | None = None
        self.difference: float | None = None
        self._fusion = fusion
        self._prompt = prompt.to(device)
        self._length = prompt.shape[1]
        self._room = -(-(self._length + tokens) // ALIGNMENT) * ALIGNMENT
        self._cache = StaticCache(config=model.config, max_cache_len=self._room)
        for layer in self._cache.layers:
            if layer.max_cache_len < self._room:
                raise ConfigError(
                    f"the model looks back {layer.max_cache_len} tokens in some layers; read and "
                    f"write at most as many together (now {self._length} and {tokens})"
                )
            layer.update = partial(self._update, layer, layer.update)
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._count = torch.zeros(1, dtype=torch.int64, device=device)  # of tokens written
        self._all_places = torch.arange(self._room, device=device)
        self._places = self._all_places  # those that a step writes to
        with torch.no_grad():
            self._read, self._write = self._captured()

    @torch.no_grad()
    def read(self) -> None:
        """Read the prompt into an empty cache and write the first token."""
        self._cache.reset()
        self._count.zero_()
        self._read()

    @torch.no_grad()
    def write(self) -> None:
        """Write all tokens but the first."""
        for _ in range(self.tokens - 1):
            self._write()

    def _captured(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Both steps, on a GPU as replays of graphs."""
        if self._token.device.type != "cuda":
            return self._read_step, self._step_of_one_token() or self._write_step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with nullcontext() if self._fusion == "none" else fused(self._model):
            with torch.cuda.stream(stream):  # compiles, and allocates what libraries keep
                self._read_step()
                self._write_step()
                write_step = self._step_of_one_token() or self._write_step
            torch.cuda.current_stream().wait_stream(stream)
            read = self._graph(self._read_step, stream)
            try:
                write = self._graph(write_step, stream)
            except Exception as error:
                if write_step == self._write_step:
                    raise
                self._refuse(error)
                write = self._graph(self._write_step, stream)
        self._captured_step = write_step  # owns tensors that its graph reads
        return read, write

    def _graph(self, step: Callable[[], None], stream: torch.cuda.Stream) -> Callable[[], None]:
        """The replay of what a step launches."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        replay: Callable[[], None] = graph.replay
        return replay

    def _step_of_one_token(self) -> Callable[[], None] | None:
        """Writing by `OneToken`, tried once; None where it is not wanted, or not possible."""
        if self._fusion != "token":
            return None
        try:
            return self._tried(self._row())
        except Exception as error:  # whatever it is, the model's own modules are there
            self._refuse(error)
            return None

    def _refuse(self, error: Exception) -> None:
        self.refused = f"{type(error).__name__}: {error}"

    def _row(self) -> OneRow | PlainRow:
        """What computes all but the products. ConfigError where no kernels do on a GPU."""
        if self._token.device.type != "cuda":
            return PlainRow()
        reason = products.unavailable()
        if self._model.dtype not in products.DTYPES:
            reason = f"{self._model.dtype} is not served, float16 and bfloat16 are"
        if reason is not None:
            raise ConfigError(f"kernels for one token: {reason}")
        return OneRow()

    def _tried(self, row: OneRow | PlainRow) -> Callable[[], None]:
        """ConfigError where the logits after the prompt's first token are not the model's."""
        self._count.zero_()
        self._read_step()
        place = self._count + (self._length - 1)
        expected = self._step(self._token, place).double()
        step = OneToken(
            *(self._model, self._cache.layers, self._token, self.written, self._count),
            *(self._length - 1, row),
        )
        error = ((step.logits().double() - expected).norm() / expected.norm()).item()
        limit = max(LEAST_LIMIT, ROUNDINGS * torch.finfo(self._model.dtype).eps)
        if not error <= limit:
            raise ConfigError(
                f"a {type(self._model).__name__} is computed in another way than a Llama: logits "
                f"are {error:.2g} away from its own, at most {limit:.2g} was expected"
            )
        self.difference = error
        step.write()  # compiles the rest
        return step.write

    def _read_step(self) -> None:
        logits = self._step(self._prompt, 0)
        self.logits.copy_(logits)
        self._keep(logits)

    def _write_step(self) -> None:
        # the first token was counted, and it stands behind the prompt
        self._keep(self._step(self._token, self._count + (self._length - 1)))

    def _step(self, ids: Tensor, begin: int | Tensor) -> Tensor:
        """ids (1, n) at the places from `begin` on -> logits (1, vocabulary) of the last one."""
        places = torch.arange(ids.shape[1], device=ids.device) + begin
        self._places = places
        # (1, 1, n, room), added to the scores once for all layers: a token sees those up to itself
        mask = torch.zeros(len(places), self._room, device=ids.device, dtype=self._model.dtype)
        mask.masked_fill_(self._all_places > places[:, None], float("-inf"))
        options: dict[str, Any] = {"position_ids": places[None], "attention_mask": mask[None, None]}
        if "cache_position" in inspect.signature(self._model.forward).parameters:
            options["cache_position"] = places  # before transformers 5.3 the cache did not count
        output = self._model(
            ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1, **options
        )
        return output.logits[:, -1]

    def _update(
        self, layer: Any, update: Callable[..., Any], keys: Tensor, values: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        """Put keys and values at the step's places: that of the layer computes them every time."""
        if not layer.is_initialized:
            update(keys, values, *rest)  # makes its tensors
        layer.keys.index_copy_(2, self._places, keys)
        layer.values.index_copy_(2, self._places, values)
        return layer.keys, layer.values

    def _keep(self, logits: Tensor) -> None:
        self._token.copy_(logits.argmax(-1, keepdim=True))
        self.written.index_copy_(1, self._count, self._token)
        self._count.add_(1)
