"""A byte-level BPE tokenizer in GGUF metadata: tokenizer model `gpt2`, as GPT-2, SmolLM and Llama 3 use it.

Source: llama.cpp, convert_hf_to_gguf.py, `get_vocab_base`, and src/llama-vocab.cpp, where the names
of the pre-tokenizers stand for regular expressions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter, TokenType

from qbench.errors import ConfigError

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE = {  # how a text is split before the merges -> llama.cpp's name for it
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (LLAMA3, "bytes"): "llama-bpe",
    (TEKKEN, "bytes"): "tekken",
}


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, vocab_size: int) -> None:
    """Add a fast tokenizer's metadata to a file. vocab_size: rows of the embedding; rows without a token are unused.

    ConfigError where the tokenizer is not a byte-level BPE, splits text as no name of llama.cpp
    does, or has tokens beyond the embedding.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(state))
    tokens, types = _tokens(tokenizer, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(
        [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
    )
    _add_special(writer, tokenizer)
    template = tokenizer.chat_template
    if template:
        named = isinstance(template, Mapping)
        writer.add_chat_template(
            [{"name": name, "template": text} for name, text in template.items()]
            if named
            else template
        )


def _pre_tokenizer(state: Mapping[str, Any]) -> str:
    """llama.cpp's name. state: the tokenizer's JSON."""
    model, pre = state["model"], state["pre_tokenizer"] or {}
    parts = tuple(_part(part) for part in pre.get("pretokenizers", [pre]))
    if model["type"] != "BPE" or not {"words", "bytes"} & set(parts) or not model["merges"]:
        raise ConfigError(
            f"a {model['type']} tokenizer with the pre-tokenizer {pre.get('type')} cannot be written as GGUF; only "
            "byte-level BPE with merges can; export to another format"
        )
    if parts not in PRE or state["normalizer"]:
        raise ConfigError(
            f"the tokenizer splits text by {[part['type'] for part in pre.get('pretokenizers', [pre])]} and normalizer "
            f"{(state['normalizer'] or {}).get('type')}, for which no name of llama.cpp is known here; known are the "
            f"splits of {', '.join(PRE.values())}; export to another format"
        )
    return PRE[parts]


def _part(part: Mapping[str, Any]) -> str:
    """One step of a pre-tokenizer: `words`, `bytes` (ByteLevel with and without GPT-2's split), `digits`, a regex."""
    kind = part.get("type")
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        return "words" if part.get("use_regex", True) else "bytes"
    if kind == "Digits" and part["individual_digits"]:
        return "digits"
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return str(part["pattern"].get("Regex"))
    return f"unknown {kind}"


def _tokens(tokenizer: Any, vocab_size: int) -> tuple[list[str], list[TokenType]]:
    """(texts, types) of the ids 0..vocab_size-1."""
    texts = {index: text for text, index in tokenizer.get_vocab().items()}
    if max(texts) >= vocab_size:
        raise ConfigError(
            f"the tokenizer has the token {texts[max(texts)]!r} with id {max(texts)}, and the model embeds only "
            f"{vocab_size}; use the model's own tokenizer, or resize its embedding"
        )
    added = tokenizer.added_tokens_decoder
    types = []
    for index in range(vocab_size):
        if index in added:
            types.append(TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL if index in texts else TokenType.UNUSED)
    return [texts.get(index, f"[PAD{index}]") for index in range(vocab_size)], types


def _add_special(writer: GGUFWriter, tokenizer: Any) -> None:
    """Ids of the special tokens, and which of them the tokenizer puts around a text."""
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    longer = len(whole) > len(plain)
    writer.add_add_bos_token(longer and whole[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(longer and whole[-1] == tokenizer.eos_token_id)
