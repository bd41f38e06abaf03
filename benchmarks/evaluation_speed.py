"""Answers beside plain lm-eval: the same requests, in turns, on one thread.

    python benchmarks/evaluation_speed.py [--data DIR] [--rounds 3] [--dtype float32] [--store]
        [--tasks arc_easy,gsm8k]

Ours is `qbench.tasks.lm`, theirs lm-eval's HFLM with batch 16, both with a float32 softmax. Times
are processor times. Each round asks both the same requests in a random order; the ratio of a round
is theirs by ours, and its spread is over rounds. Multiple choice is scored; of GSM8K solutions are
written, by the same greedy search, which must be the same texts.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qbench.embedded import smollm2_135m
from qbench.files.atomic import write_text
from qbench.tasks import lm
from qbench.tasks.contract import Context
from qbench.tasks.data import Source, open_source
from qbench.tasks.harness import stock_parts
from qbench.tasks.registry import get_task

RESULTS = Path(__file__).parent / "results" / "evaluation_speed.json"
BATCH = 16
ASKED: dict[str, dict[str, int]] = {  # task -> its protocol, and how many subjects are asked
    "arc_easy": {"limit": 24, "subjects": 1},
    "arc_challenge": {"limit": 24, "subjects": 1},
    "mmlu": {"limit": 12, "num_fewshot": 5, "subjects": 2},
    "gsm8k": {"limit": 4, "num_fewshot": 1, "max_gen_toks": 32, "subjects": 1},
}


def requests_of(name: str, source: Source, subjects: int, **protocol: int) -> list[Any]:
    """lm-eval's requests of a task; the first subjects with at least `limit` items of one with."""
    task = get_task(name)
    requests = []
    longest = protocol.pop("max_gen_toks", None)
    spec = task.spec(source, **protocol).model_copy(update={"max_gen_toks": longest})
    for part in stock_parts(task, source, spec)[:subjects]:
        part.task.set_fewshot_seed(lm.SEED)
        part.task.build_all_requests(limit=None, rank=0, world_size=1)
        requests += part.task.instances
    return requests


def answered(model: Any, requests: list[Any]) -> tuple[float, list[Any]]:
    """Processor seconds, and the log-likelihoods, or the texts where texts are asked for."""
    started = time.process_time()
    if requests[0].request_type == "generate_until":
        answers = model.generate_until(requests, disable_tqdm=True)
    else:
        answers = [log for log, _ in model.loglikelihood(requests, disable_tqdm=True)]
    return time.process_time() - started, answers


def compare(models: dict[str, Any], requests: list[Any], rounds: int) -> dict[str, Any]:
    """Seconds of each round, the ratios, and how far the answers are apart.

    That is the largest difference of log-likelihoods in nats, or how many texts differ.
    """
    draw = random.Random(0)
    seconds: dict[str, list[float]] = {"ours": [], "lm_eval": []}
    answers: dict[str, list[Any]] = {}
    for _ in range(rounds):
        for who in draw.sample(sorted(models), 2):
            taken, answers[who] = answered(models[who](), requests)
            seconds[who].append(taken)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["lm_eval"], strict=True)]
    pairs = list(zip(answers["ours"], answers["lm_eval"], strict=True))
    if isinstance(pairs[0][0], str):
        apart = {"texts_apart": sum(a != b for a, b in pairs)}
    else:
        apart = {"nats_apart": max(abs(a - b) for a, b in pairs)}
    return {
        "requests": len(requests),
        "seconds": seconds,
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
        **apart,
    }


def measure(data: str, rounds: int, dtype: str, names: list[str]) -> dict[str, Any]:
    """The table by task. names: of the tasks that are asked."""
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(1)
    folder = smollm2_135m()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = open_source(data)

    def theirs() -> Any:
        own = lm.prepared(tokenizer, model)
        return HFLM(pretrained=model, tokenizer=own, batch_size=BATCH, softmax_dtype="float32")

    measured = {}
    for name in names:
        protocol = ASKED[name]
        with lm.quiet():
            requests = requests_of(name, source, **protocol)
            models = {
                "ours": lambda: lm.language_model(Context(model, tokenizer, source, BATCH), "t"),
                "lm_eval": theirs,
            }
            measured[name] = {**protocol, **compare(models, requests, rounds)}
        row = measured[name]
        low, high = row["ratios"]
        print(
            f"{name:14} {row['requests']:4} requests  ours {min(row['seconds']['ours']):6.1f} s  "
            f"lm-eval {min(row['seconds']['lm_eval']):6.1f} s  {row['ratio']:.2f} times "
            f"({low:.2f} to {high:.2f})  {_apart(row)}",
            flush=True,
        )
    return measured


def _apart(row: dict[str, Any]) -> str:
    if "texts_apart" in row:
        return f"{row['texts_apart']} texts differ"
    return f"{row['nats_apart']:.1e} nats apart"


def main() -> None:
    """Measure, print, and with --store keep the numbers beside the other results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tasks", default=",".join(ASKED))
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args()
    measured = measure(options.data, options.rounds, options.dtype, options.tasks.split(","))
    if options.store:
        facts = {
            "model": "smollm2-135m",
            "dtype": options.dtype,
            "batch": BATCH,
            "threads": 1,
            "machine": platform.processor() or platform.machine(),
            "versions": {name: version(name) for name in ("lm_eval", "torch", "transformers")},
        }
        write_text(RESULTS, json.dumps(facts | {"tasks": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
