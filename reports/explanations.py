"""What the columns of a table mean, in a sentence each, with their units."""

from __future__ import annotations

import re

METRICS = {
    "perplexity": "e to the mean negative log-likelihood of a token of the text, in nats",
    "token_perplexity": "e to the mean negative log-likelihood of a token, in nats",
    "kl_mean": "mean over tokens of the KL divergence, in nats, of the model's next-token "
    "distribution from that of the model before quantization",
    "kl_reverse": "the same of the distribution before quantization from that of the model",
    "kl_median": "the KL divergence, in nats, that every other token exceeds",
    "kl_noise": "the KL divergence, in nats, of the model before quantization from its own "
    "reference, which is kept in float16, where its products have other shapes: rounding alone",
    "nll": "mean negative log-likelihood of a token of the text, in nats",
    "acc_macro": "mean over the subjects of their shares of right answers",
    "kl_p99": "the KL divergence, in nats, that one token in a hundred exceeds",
    "top1_agreement": "share of tokens whose likeliest next token is that of the model before "
    "quantization",
    "acc": "share of items whose right choice is the likeliest one",
    "acc_norm": "the same with log-likelihoods divided by the length of the choice in bytes",
    "exact_match": "share of items whose generated answer is the right one, as the filter reads it",
    "gold_logprob": "mean log-probability, in nats, of the right choice among the choices",
    "gold_nll": "mean negative log-likelihood, in nats per token, of the given solution",
}
COLUMNS = {
    "#": "1 and the number of cells, judged alike and of as many measured bits or fewer, that are "
    "better in the divergence, else the first score, item by item with 95 % confidence; draws that "
    "differ in their seed alone count once, by all draws together, but where either method has a "
    "single one by the draw of the same seed or else the first; a cell without items has no place "
    "and is not counted; \u2265 where a cell that was judged otherwise, such as by other code, has "
    "a better score and cannot be counted",
    "model": "what was quantized",
    "method": "how, with the parameters that differ from their defaults",
    "bits": "nominal: what was asked for",
    "group": "inputs that share a scale",
    "format": "what a quantized weight is: codes on a uniform grid, bit planes (binary), points of "
    "a lattice, or dense",
    "bits/weight (measured)": "all bytes of the quantized layers' tensors, scales among them, over "
    "the number of their weights",
    "quantize seconds": "wall-clock time of the quantization alone",
    "peak memory MB": "of the process, or of the GPU where one was used, while quantizing",
    "block loss": "geometric mean over the blocks of the reconstruction loss on held-out text",
    "block loss at the start": "the same before training",
    "on disk MB": "millions of bytes of the files of weights, embeddings among them",
    "tokens/s": "tokens that the packed model writes per second, greedy, one sequence at a time",
    "tokens/s x dense": "the same over that of the unquantized model, measured in turns; above 1 "
    "is faster",
    "timed on": "device, threads and dtype of the latencies; times of other places do not compare",
    "in memory MB": "most memory that the packed model takes to load, read and write, beyond what "
    "the process takes by itself",
}
BATCH = re.compile(r"batch (\d+) (ms|x dense)")


def explanation(column: str, metric: str | None) -> str:
    """Of a column by its name, or by its metric where it is a score; empty where there is none."""
    if metric is not None:
        return METRICS.get(metric, "")
    batch = BATCH.fullmatch(column)
    if batch is None:
        return COLUMNS.get(column, "")
    rows, kind = batch.groups()
    vectors = "one token" if rows == "1" else f"{rows} tokens at a time"
    if kind == "ms":
        return f"milliseconds for the products of all quantized layers with {vectors}, median"
    return f"dense products of {vectors} over the packed ones, in turns; above 1 is faster"
