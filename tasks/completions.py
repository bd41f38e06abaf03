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
ROUNDING = 1e-3  # nats above 0 that a log-probability may be rounded to
FEW = 8  # tokens, of which a model may be certain to the last digit


def require_likelihoods(answer: Any, prompts: Sequence[Sequence[int]]) -> None:
    """ConfigError unless the answer has ln p of every token of every prompt, and of one written.

    The first token has no token before it, so its entry is ignored.
    """
    for choice, prompt in zip(_choices(answer, len(prompts)), prompts, strict=True):
        logprobs = _entry(choice, "logprobs", dict)
        wanted = len(prompt) + WRITTEN
        for key in ("token_logprobs", "top_logprobs"):
            count = len(_entry(logprobs, key, list))
            if count != wanted:
                raise ConfigError(
                    f"it gives {count} {key} for a prompt of {len(prompt)} tokens, and with the "
                    f"token that is written {wanted} are wanted"
                )
        logs = logprobs["token_logprobs"]
        for place, log in enumerate(logs[1:], start=1):
            if not _is_number(log) or not log <= ROUNDING:
                raise ConfigError(
                    f"the log-probability of token {place} is {shortened(log)}, and it has to be a "
                    "finite number, 0 at most"
                )
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
