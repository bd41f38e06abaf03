"""What lm-eval's models of engines have in common here: quiet, with our tokens and our progress.

Importing it imports lm-eval, which takes seconds: `qbench.tasks.engines` does so where an engine is
started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM

from qbench.tasks.beginnings import prompt_facts
from qbench.tasks.lm import Progress, require_answers

if TYPE_CHECKING:
    from qbench.tasks.contract import Context


class EngineModel:
    """The first of two base classes; the other is lm-eval's model of a kind of engine.

    templated, cut, span: as `qbench.tasks.quiet_model.QuietModel` has them. longest: tokens of a
    request, beside the one that engines always write.
    """

    longest: int
    templated = False
    cut = 0
    span = (0.0, 1.0)

    def turn_to(self: Any, context: Context, name: str, chat_template: bool) -> None:
        """Answer requests of this task from now on."""
        self.context, self.name = context, name
        self.templated = chat_template
        self.cut = 0
        self.span = (0.0, 1.0)

    def tok_encode(
        self: Any,
        string: Any,
        add_special_tokens: Any = None,
        left_truncate_len: Any = None,
        **_: Any,
    ) -> Any:
        """The tokens that the Hugging Face model would get."""
        if not isinstance(string, str):
            return [self.tok_encode(text, add_special_tokens) for text in string]
        return HFLM.tok_encode(self, string, add_special_tokens, left_truncate_len)

    def answer(self: Any, requests: list[Any]) -> list[Any]:
        """Of (key, context, continuation) in tokens: (ln p, whether it is the likeliest)."""
        self._count(requests)
        return self._loglikelihood_tokens(requests, disable_tqdm=True)

    def loglikelihood(self: Any, requests: Any, disable_tqdm: bool = True) -> Any:
        """ln p of the answers of requests."""
        self._count(requests)
        return super().loglikelihood(requests, disable_tqdm=True)  # type: ignore[misc]

    def generate_until(self: Any, requests: Any, disable_tqdm: bool = True) -> Any:
        """What is written after the prompts of requests; counts the prompts that are too long."""
        self._count(requests)
        for prompt, options in (request.args for request in requests):
            room = self.max_length - options.get("max_gen_toks", self.max_gen_toks)
            self.cut += len(self.tok_encode(prompt)) > room
        return super().generate_until(requests, disable_tqdm=True)  # type: ignore[misc]

    def log_normalizer(self, prompt: str) -> float:
        """0: an engine gives no logits, and some no likelihoods, of what they write."""
        return 0.0

    @property
    def max_gen_toks(self: Any) -> int:
        """How many tokens are written where a task does not say."""
        return self._max_gen_toks

    @property
    def facts(self: Any) -> dict[str, Any]:
        """How requests were answered."""
        return {"cut_prompts": self.cut} | prompt_facts(self, self.context)

    def _count(self: Any, requests: Any) -> None:
        """The next answers are those of these requests."""
        self.set_cache_hook(Progress(self.context, self.name, len(requests), self.span))

    def _loglikelihood_tokens(self: Any, requests: Any, **options: Any) -> Any:
        require_answers(self.name, self.tokenizer, requests, self.longest)
        for _, prompt, answer in requests:
            self.cut += len(prompt) + len(answer) > self.longest
        return super()._loglikelihood_tokens(requests, **options)  # type: ignore[misc]
