"""The answers of an OpenAI-compatible server to /v1/completions, checked against the request.

lm-eval adds up the log-probabilities after the prompt, without the last one. If the list is too
short, the sum is 0, which is the likelihood of a certainty: a server that gives less than it was
asked for would seem perfect. So answers are checked here before lm-eval reads them. The messages
are parts of a sentence, which `qbench.tasks.endpoint_model` completes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from reprlib import repr as shortened
from typing import Any

from qbench.errors import ConfigError

WRITTEN = 1  # token that lm-eval has a server write behind a prompt, since some write at least one
LEAST = -3.4e38  # nats: no log-probability in float32 is below, and sums of such stay finite
ROUNDING = 1e-3  # nats above 0 that a log-probability may be rounded to
FEW = 8  # tokens, of which a model may be certain to the last digit


def require_model(answer: Any, asked: str) -> None:
    """ConfigError where the answer says that it is another model's than the one that was asked."""
    answered = answer.get("model") if isinstance(answer, dict) else None
    if answered is not None and answered != asked:
        raise ConfigError(f"the model {shortened(answered)} answers, and {asked!r} was asked")


def require_likelihoods(answer: Any, prompts: Sequence[Sequence[int]]) -> None:
    """ConfigError unless the answer has ln p of every token of every prompt, and of one written.

    The first token has no token before it, so its entry is ignored.
    """
    for choice, prompt in zip(_choices(answer, len(prompts)), prompts, strict=True):
        logprobs = _entry(choice, "logprobs", dict)
        wanted = len(prompt) + WRITTEN
        names = ("token_logprobs", "top_logprobs", "tokens")
        for key in names if logprobs.get("tokens") is not None else names[:2]:
            count = len(_entry(logprobs, key, list))
            if count != wanted:
                raise ConfigError(
                    f"it gives {count} {key} for a prompt of {len(prompt)} tokens, and with the "
                    f"token that is written {wanted} are wanted"
                )
        logs = logprobs["token_logprobs"]
        for place, log in enumerate(logs[1:], start=1):
            _require_logarithm(log, f"token {place}")
            for likely in _likely(logprobs["top_logprobs"][place]):
                _require_logarithm(likely, f"a likely token in place of token {place}")
        if len(prompt) > FEW and not any(logs[1:-WRITTEN]):
            raise ConfigError(f"the token_logprobs of a prompt of {len(prompt)} tokens are all 0")


def require_texts(answer: Any, prompts: Sequence[Any]) -> None:
    """ConfigError unless the answer has a text for every prompt."""
    for choice in _choices(answer, len(prompts)):
        _entry(choice, "text", str)


def _choices(answer: Any, prompts: int) -> list[Any]:
    """The choices in the order of the prompts; ConfigError unless each prompt has one."""
    choices = _entry(answer, "choices", list)
    places = [_entry(choice, "index", int) for choice in choices]
    if sorted(places) != list(range(prompts)):
        raise ConfigError(
            f"its choices have the indices {shortened(places)}, and the number of prompts is "
            f"{prompts}"
        )
    return [choices[places.index(prompt)] for prompt in range(prompts)]


def _entry(holder: Any, key: str, kind: type) -> Any:
    """An entry of a JSON object; ConfigError where there is none of this type."""
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, kind):
        raise ConfigError(f"{key} is {shortened(value)}, and has to be of type {kind.__name__}")
    return value


def _likely(top: Any) -> list[Any]:
    """The log-probabilities of the likeliest tokens; ConfigError where they have no tokens."""
    if not isinstance(top, dict):
        raise ConfigError(f"an entry of top_logprobs is {shortened(top)}, and has to be an object")
    return list(top.values())


def _require_logarithm(log: Any, token: str) -> None:
    """ConfigError unless it is the logarithm of a probability. token: whose, for the message."""
    if not _is_number(log) or not LEAST <= log <= ROUNDING:
        raise ConfigError(
            f"the log-probability of {token} is {shortened(log)}, and it has to be a finite number "
            "of float32, 0 at most"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
