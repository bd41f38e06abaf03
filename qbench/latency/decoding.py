"""Greedy decoding that a GPU does without waiting for Python: static cache, and CUDA graphs.

Reading the prompt and writing one token are captured once each and replayed. What changes from one
step to the next lives in tensors: the token, the place in the cache, the tokens written so far. On
the CPU the same functions are called instead. Nothing runs in inference mode, whose tensors have no
versions: kernels that prepare x once for several layers go by these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Decoder:
    """A model with a static cache for one prompt of a fixed length, and for what follows it.

    model: a transformers model for causal language modelling, on one device. prompt: token ids
    (1, length). tokens: how many are written, at least 2.
    """

    def __init__(self, model: Any, prompt: Tensor, tokens: int) -> None:
        from transformers import StaticCache

        device = model.device
        self.tokens = tokens
        self.written = torch.zeros(1, tokens, dtype=torch.int64, device=device)
        self.logits = torch.zeros(1, model.config.vocab_size, device=device)  # after the prompt
        self._model = model
        self._prompt = prompt.to(device)
        self._length = prompt.shape[1]
        self._room = self._length + tokens
        self._cache = StaticCache(config=model.config, max_cache_len=self._room)
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._count = torch.zeros(1, dtype=torch.int64, device=device)  # of tokens written
        places = torch.arange(self._room, device=device)
        # (1, 1, length, room): a token sees itself and those before it
        self._mask = (places <= places[: self._length, None])[None, None]
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
            return self._read_step, self._write_step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles, and allocates what libraries keep
            self._read_step()
            self._write_step()
        torch.cuda.current_stream().wait_stream(stream)
        replays = []
        for step in (self._read_step, self._write_step):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                step()
            replays.append(graph.replay)
        read, write = replays
        return read, write

    def _read_step(self) -> None:
        logits = self._step(self._prompt, 0, self._mask)
        self.logits.copy_(logits)
        self._keep(logits)

    def _write_step(self) -> None:
        # the first token was counted, and it stands behind the prompt
        self._keep(self._step(self._token, self._count + (self._length - 1), None))

    def _step(self, ids: Tensor, begin: int | Tensor, mask: Tensor | None) -> Tensor:
        """ids (1, n) at the places from `begin` on -> logits (1, vocabulary) of the last one."""
        places = torch.arange(ids.shape[1], device=ids.device) + begin
        options: dict[str, Any] = {"position_ids": places[None], "attention_mask": mask}
        if "cache_position" in inspect.signature(self._model.forward).parameters:
            options["cache_position"] = places  # before transformers 5.3 the cache did not count
        output = self._model(
            ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1, **options
        )
        return output.logits[:, -1]

    def _keep(self, logits: Tensor) -> None:
        self._token.copy_(logits.argmax(-1, keepdim=True))
        self.written.index_copy_(1, self._count, self._token)
        self._count.add_(1)
