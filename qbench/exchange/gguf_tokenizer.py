"""A byte-level BPE tokenizer in GGUF metadata, as GPT-2, SmolLM, Llama 3 and Qwen2 have it.

    tokenizer.ggml.model            gpt2
    tokenizer.ggml.pre              the name of the pre-tokenizer, which splits text before merges
    tokenizer.ggml.tokens           texts of the ids 0..vocab_size-1
    tokenizer.ggml.token_type       normal, control (special), user defined (added) or unused
    tokenizer.ggml.merges           "left right" each, the first merge first
    tokenizer.ggml.bos_token_id     and likewise eos, unk (unknown) and pad (padding)
    tokenizer.ggml.add_bos_token    whether a text gets that token in front; add_eos_token behind
    tokenizer.chat_template         of transformers, in Jinja

Source: llama.cpp, convert_hf_to_gguf.py, `get_vocab_base`, and src/llama-vocab.cpp, where the names
of the pre-tokenizers stand for regular expressions. Qwen's tokenizers compose a text first (NFC).
llama.cpp's name for them is `qwen2`, and it leaves that step out, as does transformers' reader: a
text that is not composed, such as one with accents of their own, has other tokens there.
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
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How a text is split before the merges, in the words of `_step`, and llama.cpp's name for it.
PRE = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (LLAMA3, "bytes"): "llama-bpe",
    (TEKKEN, "bytes"): "tekken",
    (QWEN2, "bytes"): "qwen2",
}
COMPOSED = ("qwen2",)  # of whose tokenizers it is known that they may compose a text first
BEGUN = ("llama-bpe", "tekken")  # of which llama.cpp puts BOS before a text unless the file says no


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, vocab_size: int) -> None:
    """Add a fast tokenizer's metadata to a file.

    vocab_size: rows of the embedding; rows without a token are marked unused. ConfigError where the
    tokenizer is not a byte-level BPE, splits text as no name of llama.cpp does, or has tokens
    beyond the embedding.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    pre = _pre_tokenizer(state)
    writer.add_tokenizer_pre(pre)
    tokens, types = _tokens(tokenizer, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_merges(state))
    _add_special(writer, tokenizer, begun=pre in BEGUN)
    template = tokenizer.chat_template
    if isinstance(template, Mapping):  # several, by name
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def _pre_tokenizer(state: Mapping[str, Any]) -> str:
    """llama.cpp's name. state: the tokenizer's JSON."""
    model = state["model"]
    pre_tokenizer = state["pre_tokenizer"] or {}
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    steps = tuple(_step(part) for part in parts)
    is_byte_level = "words" in steps or "bytes" in steps
    if model["type"] != "BPE" or not is_byte_level or not model["merges"]:
        raise ConfigError(
            f"a {model['type']} tokenizer with the pre-tokenizer {pre_tokenizer.get('type')} "
            "cannot be written as GGUF; only byte-level BPE with merges can; "
            "export to another format"
        )
    pre = PRE.get(steps)
    normalizer = (state["normalizer"] or {}).get("type")
    is_known = normalizer is None or (normalizer == "NFC" and pre in COMPOSED)
    if pre is None or not is_known:
        raise ConfigError(
            f"the tokenizer splits text by {[part['type'] for part in parts]} and normalizer "
            f"{normalizer}, for which no name of llama.cpp is known here; known are "
            f"the splits of {', '.join(PRE.values())}, and NFC before that of "
            f"{', '.join(COMPOSED)}; export to another format"
        )
    return pre


def _step(part: Mapping[str, Any]) -> str:
    """One step of a pre-tokenizer in a word, or its regular expression.

    `words` and `bytes` are ByteLevel with and without GPT-2's split, `digits` splits off every
    digit.
    """
    kind = part.get("type")
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        return "words" if part.get("use_regex", True) else "bytes"
    if kind == "Digits" and part["individual_digits"]:
        return "digits"
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return str(part["pattern"].get("Regex"))
    return f"unknown {kind}"


def _merges(state: Mapping[str, Any]) -> list[str]:
    """`left right` each: older tokenizers store a merge as this text, newer ones as a pair."""
    merges = state["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _tokens(tokenizer: Any, vocab_size: int) -> tuple[list[str], list[TokenType]]:
    """(texts, types) of the ids 0..vocab_size-1."""
    text_by_id = {index: text for text, index in tokenizer.get_vocab().items()}
    last = max(text_by_id)
    if last >= vocab_size:
        raise ConfigError(
            f"the tokenizer has the token {text_by_id[last]!r} with id {last}, and the model "
            f"embeds only {vocab_size}; use the model's own tokenizer, or resize its embedding"
        )
    added = tokenizer.added_tokens_decoder
    texts = []
    types = []
    for index in range(vocab_size):
        texts.append(text_by_id.get(index, f"[PAD{index}]"))
        if index in added:
            types.append(TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL if index in text_by_id else TokenType.UNUSED)
    return texts, types


def _add_special(writer: GGUFWriter, tokenizer: Any, begun: bool) -> None:
    """Ids of the special tokens, and which of them the tokenizer puts around a text.

    begun: whether llama.cpp puts BOS before a text where a file says nothing of it. That is what a
    file says of a tokenizer without BOS whose settings are silent: a no is a word of theirs.
    """
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            add_id = getattr(writer, f"add_{name}_token_id")
            add_id(index)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    is_longer = len(whole) > len(plain)
    begins = is_longer and whole[0] == tokenizer.bos_token_id
    if begins or begun or tokenizer.init_kwargs.get("add_bos_token") is False:
        writer.add_add_bos_token(begins)
    writer.add_add_eos_token(is_longer and whole[-1] == tokenizer.eos_token_id)
