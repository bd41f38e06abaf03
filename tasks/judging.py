"""From lm-eval's logged answers to scores, by what a task asks of the model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qbench.errors import ConfigError, MethodError
from qbench.records import Score, TaskSpec
from qbench.tasks.contract import Outcome
from qbench.tasks.lm import answers, gold_choice, loglikelihoods, prompts
from qbench.tasks.scores import mean_score, perplexity_score

if TYPE_CHECKING:
    from qbench.tasks.data import Source
    from qbench.tasks.harness import HarnessTask, Part

SCORED = 0.1  # share of the time that the likelihoods of a generation task take
ALIKE = "all choices are equally likely, on every item"
LOOP = 24  # tokens at the end of a text that is said to repeat itself
MACRO = "acc_macro"  # the mean over subjects of their accuracies
LEAST_SPREAD = 1e-6  # nats, between the likeliest choice of an item and the least likely one
COMPANIONS = {"gold_logprob": True, "gold_nll": False}  # whether higher is better
Row = dict[str, Any]


def check_scores(declared: HarnessTask, parts: list[Part]) -> None:
    """ConfigError where a declared score is none of the stock task's, or points the other way."""
    known = _directions(declared, parts[0])
    for score in declared.scores:
        if score.metric not in known:
            raise ConfigError(
                f"task {declared.name} declares the score {score.metric!r}, which it does not "
                f"give; it gives {', '.join(known)}"
            )
        if score.higher_is_better != known[score.metric]:
            raise ConfigError(
                f"task {declared.name} declares that a {score.better} {score.metric} is better; "
                "lm-eval says the contrary"
            )
        nature = "perplexity" if score.metric == "perplexity" else "plain"
        if score.nature != nature:
            raise ConfigError(
                f"task {declared.name} declares the nature {score.nature!r} for {score.metric!r}, "
                f"which is {nature!r}; write nature: {nature}"
            )


def judge(
    declared: HarnessTask, lm: Any, parts: list[Part], spec: TaskSpec, source: Source
) -> Outcome:
    """Ask the model, and score what it answers."""
    if declared.kind == "generation":
        return _generation(declared, lm, parts, spec)
    if declared.kind == "loglikelihood":
        return _loglikelihood(declared, lm, parts, spec)
    return _multiple_choice(declared, lm, parts, spec, source)


def _directions(declared: HarnessTask, part: Part) -> dict[str, bool]:
    """Every metric of a task -> whether higher is better."""
    directions = dict(part.task.higher_is_better())
    if declared.companion is not None:
        directions[declared.companion] = COMPANIONS[declared.companion]
    if part.subject is not None:
        directions[MACRO] = True
    return directions


def _multiple_choice(
    declared: HarnessTask, lm: Any, parts: list[Part], spec: TaskSpec, source: Source
) -> Outcome:
    rows = []
    for row in _answers(lm, parts):
        rows.append(row | _choice_values(row, declared.companion))
    _require_finite(spec.name, [row["loglikelihoods"] for row in rows])
    subjects = _weigh_subjects(rows)
    directions = _directions(declared, parts[0])
    scores = _scores(spec.name, rows, directions)
    if _choices_are_alike(rows):
        scores = [score.model_copy(update={"suspicion": ALIKE}) for score in scores]
    directions.pop(MACRO, None)  # of all subjects, and not of a category
    categories = dict.fromkeys(part.category for part in parts if part.category)
    for category in categories:
        members = {part.subject for part in parts if part.category == category}
        own = [row for row in rows if row["subject"] in members]
        scores += _scores(source.task_name(category), own, directions)
    return Outcome(tuple(scores), rows, {"subjects": subjects} if subjects else {})


def _weigh_subjects(rows: list[Row]) -> dict[str, int]:
    """The number of items of each subject. Each row also gets an `acc_macro`.

    There are S subjects; that of a row has n of all N items; M is the mean over subjects of their
    accuracies. A row gets M + N / (S n) * (acc - M). The mean of these over all rows is M, and over
    a subject their distances from M add up to N / S * (the subject's accuracy - M), whatever its
    size n. So the standard error over clusters is that of S means: their deviation / sqrt(S).
    """
    own: dict[str, list[float]] = {}
    for row in rows:
        if "subject" in row:
            own.setdefault(row["subject"], []).append(row["acc"])
    if not own:
        return {}
    mean = math.fsum(math.fsum(values) / len(values) for values in own.values()) / len(own)
    for row in rows:
        if "subject" in row:
            weight = len(rows) / (len(own) * len(own[row["subject"]]))
            row[MACRO] = mean + weight * (row["acc"] - mean)
    return {subject: len(values) for subject, values in own.items()}


def _choices_are_alike(rows: list[Row]) -> bool:
    """Whether the model finds all choices equally likely, on every one of several items."""
    spreads = [max(row["loglikelihoods"]) - min(row["loglikelihoods"]) for row in rows]
    return len(rows) > 1 and max(spreads) < LEAST_SPREAD


def _choice_values(row: Row, companion: str | None) -> Row:
    """The choices' log-likelihoods, and the share of the gold one among them."""
    logs = [float(answer[0]) for answer in row.pop("filtered")]
    row.pop("responses")
    values: Row = {"loglikelihoods": logs}
    if companion == "gold_logprob":
        # log softmax over the choices; the largest is taken off, so that no exp overflows.
        top = max(logs)
        log_sum = math.log(math.fsum(math.exp(x - top) for x in logs))
        values["gold_logprob"] = logs[row["target"]] - top - log_sum
    return values


def _require_finite(task: str, likelihoods: list[list[float]]) -> None:
    """MethodError where a number of an item is not finite: a choice of NaN would never be taken."""
    bad = sum(not all(map(math.isfinite, of_item)) for of_item in likelihoods)
    if bad:
        raise MethodError(
            f"{task}: the log-likelihood of an answer is not finite on {bad} of "
            f"{len(likelihoods)} items; the quantized model gives NaN or infinity"
        )


def _loglikelihood(declared: HarnessTask, lm: Any, parts: list[Part], spec: TaskSpec) -> Outcome:
    """The likelihood of one continuation: whether it is the most likely one, and its perplexity.

    lm-eval's perplexity of such a task is that of the whole continuation, not of a token. The row
    of an item holds its log-likelihood, and lm-eval's value under `perplexity` is just that.
    """
    rows = []
    for row in _answers(lm, parts):
        ((log, _greedy),) = row.pop("filtered")
        row.pop("responses")
        row.pop("perplexity", None)
        rows.append(row | {"loglikelihood": float(log)})
    _require_finite(spec.name, [[row["loglikelihood"]] for row in rows])
    directions = _directions(declared, parts[0])
    scores = _scores(spec.name, rows, directions)
    if "perplexity" in directions:
        losses = [-row["loglikelihood"] for row in rows]
        scores.append(perplexity_score(mean_score(spec.name, "nll", losses, higher=False)))
    return Outcome(tuple(scores), rows)


def _generation(declared: HarnessTask, lm: Any, parts: list[Part], spec: TaskSpec) -> Outcome:
    """The likelihood of every gold solution, and the first `generate` solutions as written."""
    (part,) = parts
    writes = spec.generate != 0
    scores: list[Score] = []
    rows: list[Row] = []
    facts: Row = {}
    if declared.companion == "gold_nll":
        lm.span = (0.0, SCORED if writes else 1.0)
        rows = _gold_rows(lm, part)
        scores = _scores(spec.name, rows, {"gold_nll": False})
    elif writes:
        _, prompt = prompts(part.task, lm)[0]
        _require_finite(spec.name, [[lm.log_normalizer(prompt)]])
    if writes:
        lm.span = (SCORED if rows else 0.0, 1.0)
        written = _answers(lm, parts, spec.generate)
        facts = _told_of_writing(lm, part, written)
        scores += _scores(spec.name, written, part.task.higher_is_better())
        rows += written
    return Outcome(tuple(scores), rows, facts)


def _told_of_writing(lm: Any, part: Part, written: list[Row]) -> Row:
    """Where generation ended, and how many answers are empty, repeat themselves or reached it.

    Each row gets `tokens` of what was written, up to the stop string, `cut_off` and `looping`.
    """
    asked = part.task.config.generation_kwargs or {}
    most = asked.get("max_gen_toks", lm.max_gen_toks)
    for row in written:
        ((text, *_), *_) = row["responses"]
        tokens = lm.tok_encode(text, add_special_tokens=False)
        row["tokens"] = len(tokens)
        row["cut_off"] = row["tokens"] >= most
        row["looping"] = loops(tokens)
    (first, *_) = [row["filter"] for row in written]
    answers = [row for row in written if row["filter"] == first]
    return {
        "max_gen_toks": most,
        "until": list(asked.get("until", ())),
        "written": len(answers),
        "cut_off": sum(row["cut_off"] for row in answers),
        "looping": sum(row["looping"] for row in answers),
        "empty": sum(not row["responses"][0][0].strip() for row in answers),
    }


def loops(tokens: Sequence[int]) -> bool:
    """Whether a text ends in the same tokens three times or more, at least LOOP of them."""
    count = len(tokens)
    for period in range(1, count // 3 + 1):
        length = max(3 * period, LOOP)
        tail = tokens[-length:]
        if length <= count and tail[period:] == tail[:-period]:
            return True
    return False


def _gold_rows(lm: Any, part: Part) -> list[Row]:
    """How likely each item's gold solution is, after the prompt that generation starts from."""
    # A template ends where the answer begins, so that lm-eval puts nothing in between, either.
    between = "" if lm.templated else part.task.config.target_delimiter
    pairs = []
    for doc, prompt in prompts(part.task, lm):
        pairs.append((prompt, f"{between}{part.task.doc_to_target(doc)}"))
    likelihoods = loglikelihoods(lm, part.name, pairs)
    rows = []
    for doc_id, (log, tokens), (prompt, gold) in zip(part.rows, likelihoods, pairs, strict=True):
        row = {
            "doc_id": doc_id,
            "filter": "none",
            "prompt_hash": _hash(prompt),
            "target_hash": _hash(gold),
            "loglikelihood": log,
            "tokens": tokens,
            "gold_nll": -log / tokens,
        }
        rows.append(row)
    return rows


def _answers(lm: Any, parts: list[Part], limit: int | None = None) -> list[Row]:
    """One row per item and filter: which item, what was answered, and lm-eval's metrics."""
    samples = answers(lm, [part.task for part in parts], limit)
    rows = []
    for part in parts:
        for sample in samples[part.name]:
            rows.append(_answer_row(part, sample))
    return rows


def _answer_row(part: Part, sample: dict[str, Any]) -> Row:
    row: Row = {"doc_id": part.rows[sample["doc_id"]]}
    for key in ("filter", "doc_hash", "prompt_hash", "target_hash", "target"):
        row[key] = sample[key]
    if part.task.OUTPUT_TYPE == "multiple_choice":
        row["target"] = gold_choice(part.task, sample["doc"])
    if part.subject:
        row["subject"] = row["cluster"] = part.subject
    row["responses"] = sample["resps"]
    row["filtered"] = sample["filtered_resps"]
    for metric in sample["metrics"]:
        row[metric] = float(sample[metric])
    return row


def _scores(task: str, rows: list[Row], directions: dict[str, bool]) -> list[Score]:
    """Every metric under every filter, in the order in which they first appear."""
    having: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        for metric in directions:
            if metric in row:
                having.setdefault((metric, row["filter"]), []).append(row)
    scores = []
    for (metric, name), of_metric in having.items():
        values = [row[metric] for row in of_metric]
        score = mean_score(
            task,
            metric,
            values,
            higher=directions[metric],
            filter=name,
            clusters=[row.get("cluster", row["doc_id"]) for row in of_metric],
            chance=None if metric in COMPANIONS else _chance(values, of_metric),
        )
        scores.append(score)
    return scores


def _chance(values: list[float], rows: list[Row]) -> float | None:
    """The share that guessing gets right, where values say right or wrong, 1 or 0; else None."""
    if not set(values) <= {0.0, 1.0}:
        return None
    choices = [len(row.get("loglikelihoods", ())) for row in rows]
    return math.fsum(1 / count for count in choices if count) / len(rows)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
