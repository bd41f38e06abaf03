"""The fast way against the plain model, family by family, and which families are refused."""

from __future__ import annotations

import pytest
import torch
import transformers

from families import COMMON, WIDE, family_model
from places import REAL_DATA, needs_real_data
from qbench.embedded import smollm2_135m
from qbench.tasks import lm
from qbench.tasks.beginnings import prepared
from qbench.tasks.contract import Context
from qbench.tasks.folder import FolderSource
from qbench.tasks.harness import stock_parts
from qbench.tasks.mini_source import MiniSource
from qbench.tasks.prefix_pass import PrefixModel, reach, why_not
from qbench.tasks.registry import get_task

ALIBI = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2}
OTHERS = {  # the class of the config, its values, and whether attention is all that mixes tokens
    "mamba": ("MambaConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}),
    "bloom-alibi": ("BloomConfig", ALIBI),
    "falcon-alibi": ("FalconConfig", COMMON | {"alibi": True}),
}
TEXT = torch.randint(1, 60, (50,), generator=torch.Generator().manual_seed(3)).tolist()


def questions(count: int = 6, examples: int = 40) -> tuple[list[list[int]], list[list[int]]]:
    """Sequences of a few choices each behind the same examples, and what they predict."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(1, 60, (length,), generator=generator).tolist()

    shared = draw(examples)
    sequences, continuations = [], []
    for _ in range(count):
        question = [*shared, *draw(8)]
        for length in (1, 1, 3):
            choice = draw(length)
            sequences.append([*question, *choice[:-1]])
            continuations.append(choice)
    return sequences, continuations


@torch.no_grad()
def plain(model, sequences, continuations) -> list[tuple[float, bool]]:
    found = []
    for sequence, continuation in zip(sequences, continuations, strict=True):
        logits = model(input_ids=torch.tensor([sequence])).logits[0, -len(continuation) :]
        targets = torch.tensor(continuation)
        logs = logits.double().log_softmax(-1).gather(1, targets[:, None])
        found.append((float(logs.sum()), bool((logits.argmax(-1) == targets).all())))
    return found


def compare(model, *asked) -> None:
    found: dict[int, tuple[float, bool]] = {}
    PrefixModel(model).likelihoods(*asked, found.__setitem__)
    for index, expected in enumerate(plain(model, *asked)):
        assert found[index][0] == pytest.approx(expected[0], rel=1e-4, abs=2e-4)
        assert found[index][1] == expected[1]


def test_a_family_gives_its_own_numbers_or_is_refused(family, monkeypatch):
    model = family()
    if reach(model.config) < 60:  # a window of 8 tokens: nothing is asked together beyond
        model = None
    if model is not None and why_not(model, TEXT) is None:
        compare(model, *questions())
        monkeypatch.setitem(prefix_budget(), "cpu", 24)  # with stems in the cache
        compare(model, *questions())


def prefix_budget():
    from qbench.tasks import prefix_pass

    return prefix_pass.BUDGET


@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen2Config", "GPT2Config", "OPTConfig"])
def test_common_families_are_asked_together(kind):
    values = {"LlamaConfig": WIDE, "Qwen2Config": WIDE}.get(kind, {"vocab_size": 64})
    if kind == "OPTConfig":
        values = COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 32}
    if kind == "GPT2Config":
        values |= {"n_embd": 32, "n_layer": 2, "n_head": 2}
    assert why_not(family_model(kind, values), TEXT) is None


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_know_their_place_otherwise_are_refused(name):
    model = family_model(*OTHERS[name])
    assert why_not(model, TEXT)


ALIBI_OF_MPT = {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 2}
OWN_PLACES = {
    "vocab_size": 64,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 64,
    "is_decoder": True,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("kind", "values", "sound"),
    [
        ("LlamaConfig", WIDE, True),
        ("Qwen2Config", WIDE, True),
        ("GPT2Config", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}, True),
        ("MptConfig", ALIBI_OF_MPT, False),
        ("BigBirdPegasusConfig", OWN_PLACES, False),
    ],
)
def test_a_model_is_refused_in_all_dtypes_or_in_none(kind, values, sound, dtype):
    model = family_model(kind, values)
    for parameter in model.parameters():
        parameter.data /= 2  # so that a wrong place moves it by less than bfloat16 may large models
    model = model.to(dtype)
    reason = why_not(model, TEXT)
    assert (reason is None) == sound, reason
    assert not model.get_input_embeddings()._forward_hooks, "the model is left as it was"


def test_a_sliding_window_bounds_what_is_asked_together():
    config = transformers.MistralConfig(sliding_window=8)
    assert reach(config) == 8
    assert reach(transformers.LlamaConfig()) == float("inf")
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = transformers.LlamaConfig(rope_scaling=scaled, max_position_embeddings=128)
    assert reach(config) == 128
    by_kind = {"full_attention": scaled, "sliding_attention": {"rope_type": "default"}}
    config.rope_parameters = by_kind
    assert reach(config) == 128
    assert reach(transformers.Llama4TextConfig(attention_chunk_size=64)) == 64


def test_a_mask_by_the_place_among_rows_is_seen_by_a_pass_that_is_wide(random_model):
    """GPT-Neo's, which masks so within attention whatever mask it is given."""
    config = transformers.GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
        attention_types=[[["global", "local"], 1]], window_size=256,
    )  # fmt: skip
    model = random_model(transformers.GPTNeoForCausalLM, config)
    assert "from the plain model" in why_not(model, TEXT)
    assert reach(config) == 0


@torch.no_grad()
def test_the_probe_sees_a_mask_that_is_not_heeded(tiny):
    model = tiny()
    forward = model.forward

    def careless(input_ids=None, attention_mask=None, position_ids=None, **options):
        return forward(input_ids=input_ids, position_ids=position_ids, **options)

    def placeless(input_ids=None, attention_mask=None, position_ids=None, **options):
        return forward(input_ids=input_ids, attention_mask=attention_mask, **options)

    assert why_not(model, TEXT) is None
    for broken in (careless, placeless):
        model.forward = broken
        assert "from the plain model, above 1e-06" in why_not(model, TEXT)


def both_ways(model, tokenizer, source, name: str, subjects: int = 1, **protocol):
    """The requests of a task, answered by ours and by lm-eval's own class, and our facts."""
    from lm_eval.models.huggingface import HFLM

    task = get_task(name)
    spec = task.spec(source, **protocol)
    with lm.quiet():
        requests = []
        for part in stock_parts(task, source, spec)[:subjects]:
            part.task.set_fewshot_seed(lm.SEED)
            part.task.build_all_requests(limit=None, rank=0, world_size=1)
            requests += part.task.instances
        ours = lm.language_model(Context(model, tokenizer, source, batch_size=4), name)
        own = HFLM(
            pretrained=model,
            tokenizer=prepared(tokenizer, model),
            batch_size=4,
            softmax_dtype="float32",
        )
        answered = ours.loglikelihood(requests), own.loglikelihood(requests, disable_tqdm=True)
    return *answered, ours.facts


def assert_equal_answers(found, expected, rel: float = 2e-6, abs: float = 2e-4) -> None:
    assert len(found) == len(expected) > 0
    for (log, greedy), (own_log, own_greedy) in zip(found, expected, strict=True):
        assert log == pytest.approx(own_log, rel=rel, abs=abs)
        assert greedy == own_greedy


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "mmlu"])
def test_answers_are_those_of_lm_evals_own_class(name, tiny, tokenizer):
    limit = 2 if name == "mmlu" else 6
    found, expected, facts = both_ways(tiny(), tokenizer, MiniSource(), name, 3, limit=limit)
    assert_equal_answers(found, expected)
    assert (facts["together"], facts["apart"], facts["cut_prompts"]) == (len(found), 0, 0)
    assert facts["tokens_together"] > 0


def test_prompts_that_are_cut_are_cut_alike(tiny, tokenizer):
    model = tiny(max_position_embeddings=64)
    found, expected, facts = both_ways(model, tokenizer, MiniSource(), "arc_easy", limit=3)
    assert_equal_answers(found, expected)
    assert facts["cut_prompts"] > 0


def test_a_model_that_is_refused_is_asked_as_lm_eval_asks_it(tokenizer):
    model = family_model("BloomConfig", ALIBI | {"vocab_size": 259})
    found, expected, facts = both_ways(model, tokenizer, MiniSource(), "arc_easy", limit=3)
    assert [answer[0] for answer in found] == pytest.approx([answer[0] for answer in expected])
    assert (facts["together"], facts["apart"]) == (0, len(found))
    assert facts["apart_because"]


def test_texts_beyond_a_window_are_asked_apart(tokenizer, random_model):
    config = transformers.MistralConfig(
        **WIDE | {"vocab_size": 259, "sliding_window": 60}, max_position_embeddings=4096
    )
    model = random_model(transformers.MistralForCausalLM, config)
    found, expected, facts = both_ways(model, tokenizer, MiniSource(), "arc_easy", limit=12)
    assert_equal_answers(found, expected)
    assert facts["together"] > 0 and facts["apart"] > 0


def test_rolling_likelihoods_are_those_of_lm_evals_own_class(tiny, tokenizer):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = tiny(max_position_embeddings=32)
    texts = ["a text of some forty letters, so of two windows", "b"]
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    with lm.quiet():
        ours = lm.language_model(Context(model, tokenizer, MiniSource(), batch_size=4), "t")
        own = HFLM(pretrained=model, tokenizer=prepared(tokenizer, model), batch_size=4)
        expected = own.loglikelihood_rolling(requests, disable_tqdm=True)
        assert ours.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(expected)


@needs_real_data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "protocol"), [("arc_easy", {}), ("mmlu", {"num_fewshot": 2})])
def test_answers_of_the_embedded_model_are_lm_evals(name, protocol):
    """Two questions, of mmlu behind the same examples."""
    folder = smollm2_135m()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    source = FolderSource(REAL_DATA)
    found, expected, facts = both_ways(model, tokenizer, source, name, limit=2, **protocol)
    assert_equal_answers(found, expected)
    assert facts["apart"] == 0
