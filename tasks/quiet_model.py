"""lm-eval's Hugging Face model of ours: without bars, and beginnings that are shared computed once.

Importing it imports lm-eval, which takes seconds: `qbench.tasks.lm` does so where one is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM

from qbench.tasks.beginnings import prepared, prompt_facts
from qbench.tasks.lm import Progress, batches, require_answers
from qbench.tasks.prefix_pass import PrefixModel, reach, why_not

if TYPE_CHECKING:
    from qbench.tasks.contract import Context

PROBED = "why requests are not answered together"  # in the cell's cache
Likelihood = tuple[float, bool]  # ln p of an answer, and whether it is the likeliest


class QuietModel(HFLM):
    """HFLM with a softmax in float32, our progress, and the family's BOS.

    cut: how many prompts lm-eval cut from the left. span: what the next call fills of the task's
    progress. together, apart: requests whose likelihood was computed so; computed: tokens of the
    first. templated: whether prompts are put into the model's own template.
    """

    cut = 0
    span = (0.0, 1.0)
    together = 0
    apart = 0
    computed = 0

    def __init__(self, context: Context, name: str, chat_template: bool, bos: str | None) -> None:
        """name: of the task. chat_template, bos: as in `TaskSpec`."""
        self.context = context
        self.name = name
        self.templated = chat_template
        super().__init__(
            pretrained=context.model,
            tokenizer=prepared(context.tokenizer, context.model, bos),
            batch_size=context.batch_size,
            softmax_dtype="float32",
        )

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """ln p of the answers of requests."""
        self.set_cache_hook(Progress(self.context, self.name, len(requests), self.span))
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """What is written behind the prompts of requests."""
        self.set_cache_hook(Progress(self.context, self.name, len(requests), self.span))
        return super().generate_until(requests, disable_tqdm=True)

    def log_normalizer(self, prompt: str) -> float:
        """ln of the sum of exp of the logits behind a prompt: finite, if the model works."""
        tokens = self.tok_encode(prompt)[-self.max_length :] or [self.prefix_token_id]
        logits = self._model_call(torch.tensor([tokens], device=self.device))[0, -1]
        return float(logits.float().logsumexp(-1))

    def tok_batch_encode(self, strings: Any, *args: Any, **options: Any) -> Any:
        """Tokens of prompts that are written on, of which those that are too long are counted."""
        room = options.get("left_truncate_len") or float("inf")
        self.cut += sum(len(self.tok_encode(string)) > room for string in strings)
        return super().tok_batch_encode(strings, *args, **options)

    @property
    def facts(self) -> dict[str, Any]:
        """How requests were answered, for the record."""
        facts: dict[str, Any] = {
            "together": self.together,
            "tokens_together": self.computed,
            "apart": self.apart,
            "cut_prompts": self.cut,
        } | prompt_facts(self, self.context)
        if self.context.cache.get(PROBED):
            facts["apart_because"] = self.context.cache[PROBED]
        return facts

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = True, **options: Any
    ) -> list[Likelihood]:
        require_answers(self.name, self.tokenizer, requests, self.max_length)
        # The model reads all tokens but the last, so that max_length + 1 of them fit.
        room = self.max_length + 1
        self.cut += sum(len(prompt) + len(answer) > room for _, prompt, answer in requests)
        inputs = [(prompt + answer)[-room:][:-1] for _, prompt, answer in requests]
        longest = self._longest_together(inputs)
        together = [i for i, tokens in enumerate(inputs) if len(tokens) <= longest]
        apart = [i for i, tokens in enumerate(inputs) if len(tokens) > longest]
        self.together += len(together)
        self.apart += len(apart)
        likelihoods = self._answered_together(requests, inputs, together)
        likelihoods |= self._answered_apart(requests, inputs, apart, options)
        return [likelihoods[index] for index in range(len(requests))]

    def _answered_together(
        self, requests: Any, inputs: Sequence[Sequence[int]], members: Sequence[int]
    ) -> dict[int, Likelihood]:
        """By the index of a request; the beginnings that they share are computed once."""
        likelihoods: dict[int, Likelihood] = {}

        def done(place: int, likelihood: Likelihood) -> None:
            index = members[place]
            likelihoods[index] = likelihood
            self.cache_hook.add_partial("loglikelihood", requests[index][0], likelihood)

        prefix_model = PrefixModel(self.model)
        continuations = [requests[i][2] for i in members]
        prefix_model.likelihoods([inputs[i] for i in members], continuations, done)
        self.computed += prefix_model.computed
        return likelihoods

    def _answered_apart(
        self,
        requests: Any,
        inputs: Sequence[Sequence[int]],
        members: Sequence[int],
        options: dict[str, Any],
    ) -> dict[int, Likelihood]:
        """By the index of a request; lm-eval's way, in batches whose logits fit into memory."""
        likelihoods: dict[int, Likelihood] = {}
        lengths = [len(inputs[i]) for i in members]
        vocabulary = self.model.config.get_text_config().vocab_size
        ask = partial(super()._loglikelihood_tokens, disable_tqdm=True, **options)
        for size, places in batches(lengths, self.context.batch_size, vocabulary):
            self.batch_size_per_gpu = size
            indices = [members[place] for place in places]
            answers = ask([requests[i] for i in indices])
            likelihoods.update(zip(indices, answers, strict=True))
        self.batch_size_per_gpu = self.context.batch_size
        return likelihoods

    def _longest_together(self, inputs: Sequence[Sequence[int]]) -> float:
        """Up to how many tokens requests are answered together; 0 where the probe says no."""
        cache = self.context.cache
        if PROBED not in cache:
            cache[PROBED] = why_not(self.model, max(inputs, key=len, default=()))
        return 0 if cache[PROBED] else reach(self.model.config)
