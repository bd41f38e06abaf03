"""lm-eval's model and evaluator, made quiet: progress goes to our callback, not to bars and logs.

Importing lm-eval takes seconds, so this module is imported where it is needed, and lm-eval inside
its functions.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import ConfigError, ModelError
from qbench.tasks.engines import Engine

if TYPE_CHECKING:
    from qbench.tasks.contract import Context

SEED = 1234  # lm-eval's own default for few-shot examples
LOGIT_BYTES = 2_000_000_000


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings and log lines of lm-eval and of generation, nor its draws from `random`.

    Errors show.
    """
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    drawn = random.getstate()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(drawn)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Progress:
    """Stands where lm-eval offers a cache hook, and counts answers over its span of the task."""

    def __init__(self, context: Context, name: str, total: int, span: tuple[float, float]) -> None:
        self.context = context
        self.name = name
        self.total = total
        self.span = span
        self.done = 0

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """One more answer."""
        self.done += 1
        what = "generated" if kind == "generate_until" else "scored"
        start, end = self.span
        fraction = start + (end - start) * self.done / self.total
        self.context.progress(fraction, f"{self.name}  {self.done}/{self.total} {what}")


def language_model(
    context: Context, name: str, chat_template: bool = False, bos: str | None = None
) -> Any:
    """lm-eval's Hugging Face model around ours: fp32 softmax, the family's BOS, our progress.

    chat_template, bos: as in `TaskSpec`. Of an engine, lm-eval's model of it.
    """
    if isinstance(context.model, Engine):
        return context.model.language_model(context, name, chat_template, bos)
    from qbench.tasks.quiet_model import QuietModel

    return QuietModel(context, name, chat_template, bos)


def require_answers(name: str, tokenizer: Any, requests: Sequence[Any], longest: int) -> None:
    """Raise, before a task runs, where an answer has no tokens of its own or does not fit.

    requests: of (texts, tokens of the prompt, tokens of the answer). longest: tokens of an answer.
    ModelError where the tokenizer merges an answer into its prompt, ConfigError where one is longer
    than the model's context.
    """
    for index, (texts, prompt, answer) in enumerate(requests):
        if not answer:
            end, text = texts[0][-20:], texts[1]
            raise ModelError(
                f"{name}: the tokenizer ({type(tokenizer).__name__}) merges answer {index}, "
                f"{text!r} behind {end!r}, into the prompt's {len(prompt)} tokens, so that none is "
                f"left to score; leave {name} out for this model"
            )
    most = max((len(answer) for _, _, answer in requests), default=0)
    if most > longest:
        raise ConfigError(
            f"{name} has answers of {most} tokens, and the model a context of {longest}; leave "
            f"{name} out for this model"
        )


def batches(
    lengths: Sequence[int], batch_size: int, vocabulary: int
) -> list[tuple[int, list[int]]]:
    """(batch size, indices of requests): the size at which the logits fit LOGIT_BYTES.

    lengths: of the requests, in tokens. lm-eval holds the logits of every position.
    """
    grouped: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        # 10 bytes a logit: bf16, its fp32 copy and the log-softmax
        room = max(1, LOGIT_BYTES // (10 * vocabulary * max(length, 1)))
        size = batch_size
        if room < batch_size:
            size = 2 ** (room.bit_length() - 1)  # rounded down, so that there are few groups
        grouped.setdefault(size, []).append(index)
    return sorted(grouped.items())


def warn_of_cut_prompts(lm: Any, name: str) -> None:
    """A cut prompt is another question: say so."""
    if lm.cut:
        warnings.warn(
            f"{name}: {lm.cut} prompts were longer than the model's context of {lm.max_length} "
            "tokens and were cut from the left, as lm-eval does; fewer shots avoid that",
            stacklevel=3,
        )


@lru_cache(maxsize=8)
def stock_configs(folder: str) -> dict[str, dict[str, Any]]:
    """The tasks in one of lm-eval's folders: name -> configuration, with functions resolved."""
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks" / folder
    index = TaskManager(include_path=str(path), include_defaults=False).task_index
    configs = {}
    for name, entry in sorted(index.items()):
        if entry.kind.name == "TASK":
            configs[name] = load_yaml(entry.yaml_path, resolve_func=True)
    return configs


def stock_task(config: dict[str, Any], data: Any) -> Any:
    """lm-eval's task object of a configuration, on a DatasetDict of ours instead of the hub's."""
    from lm_eval.api.task import ConfigurableTask

    class QuietTask(ConfigurableTask):
        """Builds its prompts without a progress bar."""

        def build_all_requests(self, **options: Any) -> None:
            with contextlib.redirect_stderr(io.StringIO()):
                super().build_all_requests(**options)

    here = {"dataset_path": None, "dataset_name": None, "custom_dataset": lambda **_: data}
    task = QuietTask(config=deepcopy(config) | here)
    task.set_fewshot_seed(SEED)
    return task


def answers(
    lm: Any, tasks: Sequence[Any], limit: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """lm-eval's samples by task name.

    `evaluate` and not `simple_evaluate`, which would also seed the process and inspect the machine
    on each call.
    """
    from lm_eval.evaluator import evaluate

    for task in tasks:
        task.set_fewshot_seed(SEED)
    by_name = {task.task_name: task for task in tasks}
    results = evaluate(
        lm,
        {"tasks": by_name},
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=lm.templated,
        fewshot_as_multiturn=lm.templated,
    )
    return results["samples"]


def gold_choice(task: Any, doc: dict[str, Any]) -> int:
    """The index of the right choice, where lm-eval's scoring takes it from.

    A task whose choices are contexts (Winogrande) gives the index as its text; others give it, or
    the right choice itself, as their target.
    """
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        return task.doc_to_choice(doc).index(gold)
    return gold


def prompts(task: Any, lm: Any = None) -> list[tuple[dict[str, Any], str]]:
    """Every item with its prompt, exactly as `answers` will build them.

    lm: what `language_model` gives, whose template is used where it is templated.
    """
    task.set_fewshot_seed(SEED)
    options: dict[str, Any] = {}
    if lm is not None and lm.templated:
        options = {
            "apply_chat_template": True,
            "fewshot_as_multiturn": True,
            "chat_template": lm.apply_chat_template,
            "tokenizer_name": lm.tokenizer_name,
        }
    task.build_all_requests(limit=None, rank=0, world_size=1, **options)
    return [(instance.doc, instance.args[0]) for instance in task.instances]


def loglikelihoods(lm: Any, name: str, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
    """Of every (context, continuation): ln p(continuation), and the continuation's tokens."""
    from lm_eval.api.instance import Instance

    requests = []
    for index, pair in enumerate(pairs):
        metadata = (name, index, 1)
        requests.append(Instance("loglikelihood", doc={}, arguments=pair, idx=0, metadata=metadata))
    likelihoods = lm.loglikelihood(requests)
    scored = []
    for (log, _greedy), pair in zip(likelihoods, pairs, strict=True):
        tokens = len(lm._encode_pair(*pair)[1])
        scored.append((float(log), tokens))
    return scored
