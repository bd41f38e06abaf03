"""lm-eval's model of an OpenAI-compatible server, with retries, and with checks of every answer.

Importing it imports lm-eval, which takes seconds: `qbench.tasks.engines` does so where an endpoint
is asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from lm_eval.models import api_models
from lm_eval.models.openai_completions import LocalCompletionsAPI

from qbench.errors import ConfigError, reason_of
from qbench.tasks.completions import require_likelihoods, require_model, require_texts
from qbench.tasks.engine_model import EngineModel

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before a request is sent again
TOO_MANY = 429  # the HTTP status of a server that has too much to do
OF_THE_SERVER = 500  # and more: what went wrong is not the request


class EndpointModel(EngineModel, LocalCompletionsAPI):
    """An endpoint, for lm-eval. An answer that cannot be read is a ConfigError of one sentence."""

    def __init__(self, address: str, **options: Any) -> None:
        """address: as it was given. options: of lm-eval's model; the pauses are our own."""
        self.address = address
        super().__init__(max_retries=1, **options)

    def model_call(self, messages: Any, **options: Any) -> Any:
        """The answer to a request, which is sent again where that may help."""
        with self._in_a_sentence():
            for pause in PAUSES:
                try:
                    return super().model_call(messages, **options)
                except Exception as error:
                    if not _may_pass(error):
                        raise
                time.sleep(pause)
            return super().model_call(messages, **options)

    def parse_logprobs(
        self, outputs: Any, tokens: Sequence[Sequence[int]], ctxlens: Any, **options: Any
    ) -> Any:
        """(ln p of the continuation, whether it is the likeliest) of each prompt."""
        with self._in_a_sentence():
            require_model(_single(outputs), self.model)
            require_likelihoods(_single(outputs), tokens)
            return LocalCompletionsAPI.parse_logprobs(outputs, tokens, ctxlens, **options)

    def parse_generations(self, outputs: Any, contexts: Sequence[Any], **options: Any) -> Any:
        """The text that is written behind each prompt."""
        with self._in_a_sentence():
            require_model(_single(outputs), self.model)
            require_texts(_single(outputs), contexts)
            return LocalCompletionsAPI.parse_generations(outputs, **options)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """What is written behind the prompts of requests."""
        with _without_bars():
            return super().generate_until(requests, disable_tqdm)

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
        with _without_bars():
            return super()._loglikelihood_tokens(requests, **options)

    @contextmanager
    def _in_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise ConfigError(
                f"{self.address} gives no answer that can be read: {reason_of(error)}; it has to "
                "answer /v1/completions, and give the log-probabilities of a prompt where it is "
                "asked for echo and logprobs, as vLLM's server does"
            ) from error


def _single(outputs: Any) -> Any:
    """The answer to one request, of which lm-eval makes a list."""
    return outputs[0] if isinstance(outputs, list) and len(outputs) == 1 else outputs


def _may_pass(error: Exception) -> bool:
    """Whether the server may answer the same request a little later."""
    requests = api_models.requests
    if isinstance(error, requests.HTTPError):
        status = error.response.status_code
        return status == TOO_MANY or status >= OF_THE_SERVER
    dropped = requests.exceptions.ChunkedEncodingError  # in the middle of an answer
    return isinstance(error, (requests.ConnectionError, dropped))


@contextmanager
def _without_bars() -> Iterator[None]:
    """lm-eval draws bars of requests whether or not it is asked for none."""
    bar = api_models.tqdm
    api_models.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        api_models.tqdm = bar
