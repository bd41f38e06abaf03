"""Engines that serve a model: vLLM in this process, or any OpenAI-compatible endpoint.

An engine takes the place of a transformers model in `Context`. Tasks call it through lm-eval's own
classes, with the tokens that a transformers model would get, since both encode by the same
function. Tasks that need what it cannot give, such as whole distributions, refuse it.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import ConfigError
from qbench.files.ordinary import json_of
from qbench.tasks.beginnings import begun

if TYPE_CHECKING:
    from qbench.tasks.contract import Context

VLLM = "vllm"
SECONDS = 10  # for an endpoint to say which model it serves
# Requests handed to vLLM at a time: with a number of them lm-eval asks for no bar of vLLM's, which
# divides by the time that the bar has seen, and bars are off here.
TOGETHER = 256
MAX_LENGTH = 2048  # of an endpoint that does not say, where the config does not either


@dataclass
class Engine:
    """What serves the model of a folder.

    through: `vllm`, or the address of an endpoint. config, tokenizer: of the model, by
    transformers. dtype: in which vLLM computes; an endpoint has its own. lm: lm-eval's model of it,
    and served: what an endpoint calls the model that it answers with, once it has been asked.
    """

    folder: Path
    through: str
    config: Any
    tokenizer: Any
    dtype: str
    lm: Any = field(default=None, repr=False)
    served: str | None = None

    def language_model(
        self, context: Context, name: str, chat_template: bool, bos: str | None
    ) -> Any:
        """lm-eval's model of this engine for one task, as `qbench.tasks.lm.language_model`.

        The engine is started when it is first asked. ConfigError where it cannot be, or does not
        answer.
        """
        from qbench.tasks.lm import quiet

        if self.lm is None:
            start = _vllm if self.through == VLLM else _endpoint
            with quiet():
                self.lm = start(self)
        self.lm.tokenizer = begun(context.tokenizer, self.config.model_type, bos)
        self.lm.turn_to(context, name, chat_template)
        return self.lm

    @property
    def is_another(self) -> bool:
        """Whether an endpoint's name for its model differs from the name of the folder."""
        return self.served is not None and not _is_called(self.served, self.folder.resolve().name)

    def likelihoods(self, context: Context, name: str, windows: Sequence[Any]) -> list[float]:
        """ln p of all tokens but the first, given those before, of every window (length,) int64.

        ConfigError where a window does not fit the engine's context.
        """
        from qbench.tasks.lm import quiet

        lm = self.language_model(context, name, False, None)
        requests = []
        for window in windows:
            tokens = [int(token) for token in window]
            if len(tokens) > lm.longest:
                raise ConfigError(
                    f"{name}: the engine reads {lm.longest} tokens at most, and windows have "
                    f"{len(tokens)}; set its length to {lm.longest} or less"
                )
            requests.append((("", ""), tokens[:1], tokens[1:]))
        with quiet():
            return [float(log) for log, _greedy in lm.answer(requests)]


def check_engine(through: str) -> None:
    """ConfigError, before any work, for an unknown engine, or one that is not installed."""
    if through == VLLM:
        if find_spec("vllm") is None:
            raise ConfigError(
                "--through vllm needs vllm in the environment of this qbench; install both in one "
                "of their own (docs/serving.md), or give the address of a server that runs"
            )
    elif not through.startswith(("http://", "https://")):
        raise ConfigError(
            f"--through {through!r} is no engine; give vllm, or the address of an "
            "OpenAI-compatible server, such as http://127.0.0.1:8000"
        )


def _vllm(engine: Engine) -> Any:
    """The engine in this process. ConfigError where vLLM does not take the model."""
    from lm_eval.models.vllm_causallms import VLLM as VllmModel

    from qbench.tasks.engine_model import EngineModel

    class Model(EngineModel, VllmModel):
        """lm-eval's model of vLLM."""

    folder = str(engine.folder)
    try:
        lm = Model(folder, dtype=engine.dtype, tokenizer=folder, batch_size=TOGETHER)
    except Exception as error:  # of vLLM's, which has no root for them
        raise ConfigError(
            f"vllm cannot serve {engine.folder}: {type(error).__name__}: {error}"
        ) from error
    lm.longest = lm.max_length - 1
    return lm


def _endpoint(engine: Engine) -> Any:
    """The endpoint that answers at an address; ConfigError where none does."""
    from qbench.tasks.endpoint_model import EndpointModel

    base = engine.through.rstrip("/").removesuffix("/completions").removesuffix("/v1")
    served = _served(base, engine.folder.resolve().name)
    stated = getattr(engine.config, "max_position_embeddings", None) or MAX_LENGTH
    engine.served = served.get("id") or engine.folder.name
    lm = EndpointModel(
        engine.through,
        model=engine.served,
        base_url=f"{base}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=str(engine.folder),
        max_length=min(_context(served) or stated, stated),
        add_bos_token=None,
    )
    lm.longest = lm.max_length
    return lm


def _context(served: dict[str, Any]) -> int | None:
    """How many tokens an endpoint says that it reads; None where what it says is no such number.

    One of them is the token that it always writes.
    """
    length = served.get("max_model_len")
    return length if type(length) is int and length > 1 else None  # True is no length


def _is_called(served: Any, name: str) -> bool:
    """Whether what an endpoint calls a model is this name, or a path that ends in it."""
    return isinstance(served, str) and served.rstrip("/").rpartition("/")[2] == name


def _served(base: str, name: str) -> dict[str, Any]:
    """What an endpoint says of the model with an id that ends in `name`, or of its first one.

    That is its `id`, and of vLLM's more.
    """
    headers = {}
    if "OPENAI_API_KEY" in os.environ:  # which lm-eval sends, too
        headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
    request = urllib.request.Request(f"{base}/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            models = [dict(model) for model in json_of(answer.read())["data"]]
        named = [model for model in models if _is_called(model.get("id"), name)]
        model = (named or models)[0]
        if not isinstance(model.get("id", ""), str):
            raise ValueError(f"the id {model['id']!r} is no text")
        return model
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{base}/v1/models names no model that is served: {type(error).__name__}: {error}; "
            "start a server, such as `vllm serve FOLDER`, or give its address"
        ) from error
