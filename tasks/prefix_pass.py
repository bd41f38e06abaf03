"""The model over sequences that share beginnings, and the proof that this gives its own numbers.

A pass (`qbench.tasks.shared_prefixes`) is one row of tokens with a mask of its own and positions by
depth, so it serves models whose tokens know of others by attention alone, and of their place by
`position_ids`. Which these are is not looked up: a probe compares with the model's plain answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qbench.tasks.shared_prefixes import Pass, passes

# New tokens of a pass. Many more do not make products faster, and each costs attention to all.
BUDGET = {"cpu": 512, "cuda": 4096}
LOGIT_BYTES = 2_000_000_000
# Mean KL between a pass and the plain model, in nats, that rounding explains at most: SmolLM2 has
# 2e-11 in float32, 5e-5 in float16, 3e-3 in bfloat16; a mask or a position that is not heeded, 0.05
# and up.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 2e-2}
# Small models are moved less, by either. So a model is also held against what a last bit of its
# embeddings moves it by. Passes of six sound models of 16 bits were 0 to 0.9 times as far off, and
# the wider pass of MPT, RoFormer and BigBird-Pegasus, which know of their place otherwise, 150
# times and up, unless their weights are so small that both are rounding.
MARGIN = 8
LEAST = 1e-6  # nats, where a last bit moves nothing
PROBE = (24, 8, 8)  # tokens of the probe's stem, of its branches, and of theirs
# Of configs: beyond so many tokens, attention is not to all before.
WINDOWS = ("sliding_window", "attention_window_size", "attention_chunk_size")
LENGTH_BOUND_ROPE = ("dynamic", "longrope")  # rotations that change with the text's length
Likelihood = tuple[float, bool]


def reach(config: Any) -> float:
    """Up to how many tokens a model treats all texts alike: its window, or where its rope changes.

    A pass is only right within that, and the probe is shorter. 0 for GPT-Neo, whose local layers
    mask by the place among a pass's rows.
    """
    text = config.get_text_config()
    if text.model_type == "gpt_neo":
        return 0
    limits = [getattr(text, name, None) for name in WINDOWS]
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    of_kinds = [own for own in rope.values() if isinstance(own, dict)]  # of layers, by their kind
    for own in (rope, *of_kinds):
        if own.get("rope_type", own.get("type")) in LENGTH_BOUND_ROPE:
            limits.append(
                own.get("original_max_position_embeddings")
                or getattr(text, "original_max_position_embeddings", None)
                or text.max_position_embeddings
            )
    return min((limit for limit in limits if limit), default=float("inf"))


class PrefixModel:
    """A causal model of transformers, called pass by pass."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        self.selects = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.cache: Any = None
        self.cached = 0
        self.computed = 0  # tokens

    @property
    def budget(self) -> int:
        """New tokens of a pass."""
        room = LOGIT_BYTES // (4 * self.model.config.get_text_config().vocab_size)
        return max(1, min(BUDGET.get(self.device.type, BUDGET["cuda"]), room))

    @torch.no_grad()
    def logits(self, step: Pass, rows: Tensor) -> Tensor:
        """(len(rows), V) of the tokens `rows` of a pass, in the model's dtype."""
        from transformers import DynamicCache

        keeps = not step.scored
        if step.past == 0:
            self.cache, self.cached = (DynamicCache() if keeps else None), 0
        elif self.cached > step.past:
            self.cache.crop(step.past - self.cached)
        options: dict[str, Any] = {"use_cache": self.cache is not None}
        if self.cache is not None:
            options["past_key_values"] = self.cache
        if not step.is_chain:
            options["attention_mask"] = self._mask(step)
            options["position_ids"] = torch.from_numpy(step.depth)[None].to(self.device)
        if self.selects:
            options["logits_to_keep"] = rows.to(self.device)
        tokens = torch.from_numpy(step.tokens)[None].to(self.device)
        logits = self.model(input_ids=tokens, **options).logits[0]
        self.cached = step.past + len(step.tokens)
        self.computed += len(step.tokens)
        return logits if self.selects else logits[rows.to(self.device)]

    def _mask(self, step: Pass) -> Tensor:
        """(1, 1, n, past + n): 0 where a token sees another, else the lowest number."""
        dtype = self.model.dtype
        visible = torch.from_numpy(step.visible())
        lowest = torch.finfo(dtype).min
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, lowest)
        return mask[None, None].to(self.device)

    def likelihoods(
        self,
        sequences: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        done: Callable[[int, Likelihood], None],
    ) -> None:
        """`done(i, (ln p, greedy))` for each sequence, whose end predicts continuation i.

        greedy: whether each token of it is the most likely one.
        """
        scored = [len(continuation) for continuation in continuations]
        for step in passes(sequences, scored, self.budget):
            for index, logits in self.of_pass(step).items():
                targets = torch.tensor(continuations[index], device=logits.device)[:, None]
                logs = logits.gather(1, targets)[:, 0] - logits.logsumexp(-1)
                greedy = bool((logits.argmax(-1) == targets[:, 0]).all())
                done(index, (float(logs.sum()), greedy))

    def of_pass(self, step: Pass) -> dict[int, Tensor]:
        """Sequence -> its scored logits, (continuation, V) in float32; nothing of a stem."""
        if not step.scored:
            self.logits(step, torch.tensor([len(step.tokens) - 1]))
            return {}
        wanted = [torch.from_numpy(rows) for rows in step.scored.values()]
        rows = torch.cat(wanted).unique()
        logits = self.logits(step, rows)
        of_sequences = {}
        for index, own in zip(step.scored, wanted, strict=True):
            places = torch.searchsorted(rows, own)
            of_sequences[index] = logits[places.to(self.device)].float()
        return of_sequences


def why_not(model: Any, tokens: Sequence[int]) -> str | None:
    """Why passes do not serve a model, None where they do: tried on these tokens.

    Compared with the plain model are two passes behind a stem, of two branches each, and the ends
    of one pass as wide as any: some models know of others by their places among the rows.
    """
    prefix_model = PrefixModel(model)
    tokens = (list(tokens) * PROBE[0])[: sum(PROBE)]
    branching = _branching(tokens)
    try:
        tolerance = min(TOLERANCE[model.dtype], max(LEAST, MARGIN * _rounding(model, branching)))
        divergence = _divergence(prefix_model, branching, PROBE[1] + 2 * PROBE[2])
        if divergence <= tolerance:
            wide = _wide(tokens, prefix_model.budget)
            divergence = _divergence(prefix_model, wide, prefix_model.budget)
    except Exception as error:  # whatever an unknown model raises, the plain way is there
        reason = str(error).partition("\n")[0][:200]
        return f"it cannot be called so ({type(error).__name__}: {reason})"
    if not divergence <= tolerance:
        return f"a mean KL of {divergence:.2g} nats from the plain model, above {tolerance:.0e}"
    return None


def _branching(tokens: list[int]) -> list[list[int]]:
    """Two branches of two leaves each behind a stem, as long as PROBE says."""
    stem, branch, leaf = PROBE
    sequences = []
    for turn in (0, 3):  # other tokens behind the same stem
        middle = tokens[stem + turn : stem + branch] + tokens[:turn]
        for ending in (tokens[-leaf:], tokens[-leaf:][::-1]):
            sequences.append([*tokens[:stem], *middle, *ending])
    return sequences


def _wide(tokens: list[int], budget: int) -> list[list[int]]:
    """As many branches behind a stem as a pass of this many tokens holds, in ascending order."""
    stem, branch, _ = PROBE
    generator = torch.Generator().manual_seed(0)
    count = max(2, (budget - stem) // branch)
    places = torch.randint(len(tokens), (count, branch), generator=generator).tolist()
    return sorted([*tokens[:stem], *(tokens[k] for k in row)] for row in places)


@torch.no_grad()
def _divergence(prefix_model: PrefixModel, sequences: list[list[int]], budget: int) -> float:
    """Mean KL, in nats, of passes from the plain model at the ends of the outermost sequences."""
    scored = [PROBE[1]] * len(sequences)
    compared = {0, 1, len(sequences) - 2, len(sequences) - 1}
    total = 0.0
    for step in passes(sequences, scored, budget, shortest_stem=PROBE[0]):
        for index, logits in prefix_model.of_pass(step).items():
            if index not in compared:
                continue
            total += _kl(_plain(prefix_model.model, sequences[index]), logits)
    return total / len(compared)


@torch.no_grad()
def _rounding(model: Any, sequences: list[list[int]]) -> float:
    """Mean KL, in nats, of the plain model from itself with embeddings off by a last bit."""
    generator = torch.Generator().manual_seed(0)

    def nudged(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        bits = torch.randint(-1, 2, output.shape, generator=generator)
        return output * (1 + torch.finfo(output.dtype).eps * bits).to(output)

    plain = [_plain(model, sequence) for sequence in sequences]
    hook = model.get_input_embeddings().register_forward_hook(nudged)
    try:
        moved = [_plain(model, sequence) for sequence in sequences]
    finally:
        hook.remove()
    return sum(map(_kl, plain, moved)) / len(sequences)


def _plain(model: Any, sequence: list[int]) -> Tensor:
    """(PROBE[1], V): the logits of the plain model at the end of a sequence."""
    tokens = torch.tensor([sequence], device=model.get_input_embeddings().weight.device)
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits[0, -PROBE[1] :]
    return logits


def _kl(plain: Tensor, other: Tensor) -> float:
    """Mean KL, in nats, of logits (positions, V) from the plain ones."""
    p, q = plain.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
