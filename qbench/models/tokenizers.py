"""Tokenizers: loaded, and held against the model that is to read their tokens.

What a tokenizer puts around a text is measured, not asked for, since it may do so by a template, by
a flag or by code.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from qbench.errors import ConfigError, ModelError
from qbench.files.shards import read_json
from qbench.models.pretrained import explained, from_transformers
from qbench.models.source import ModelSource
from qbench.models.tokenizer_trial import try_tokenizer

# Files of which one holds the vocabulary. Without any transformers invents an empty tokenizer.
VOCABULARIES = (
    "tokenizer.json",
    "*.model",
    "vocab.*",
    "*.tiktoken",
    "tekken.json",
    "*_vocab.json",
)
SETTINGS = "tokenizer_config.json"
ADD_BOS = "add_bos_token"  # there: whether a text begins with BOS
_PROBE = "The sun is 1 star."


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer; ModelError saying what to do if it cannot be had, or knows no text."""
    from transformers import AutoTokenizer

    if source.local and not has_vocabulary(Path(source.location)):
        raise ModelError(
            f"model {source.name!r} ({source.location}) has no tokenizer; "
            "copy tokenizer.json and tokenizer_config.json of the original model there"
        )
    if source.local:
        try_tokenizer(Path(source.location))
    tokenizer = from_transformers(source, AutoTokenizer)
    require_tokens(tokenizer, source)
    keep_word_on_bos(tokenizer, settings_file(source))
    return tokenizer


def settings_file(source: ModelSource) -> Path | None:
    """Where tokenizer_config.json of a model lies; None of a GGUF file, or where it is not here."""
    if source.gguf:
        return None
    if source.local:
        return Path(source.location, SETTINGS)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source.location, SETTINGS, revision=source.revision)
    return Path(cached) if isinstance(cached, str) else None


def keep_word_on_bos(tokenizer: Any, settings: Path | None) -> None:
    """Keep in `init_kwargs` whether a tokenizer's settings want a BOS before a text.

    settings: the file, None where there is none. transformers 5 forgets their add_bos_token where
    there is a tokenizer.json. Settings that say nothing leave nothing. StoreError where the file is
    damaged.
    """
    word = read_json(settings).get(ADD_BOS) if settings and settings.is_file() else None
    if isinstance(word, bool):
        tokenizer.init_kwargs[ADD_BOS] = word


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """`save_pretrained`, with the word on BOS of `keep_word_on_bos`, which transformers 5 drops."""
    tokenizer.save_pretrained(folder)
    word = tokenizer.init_kwargs.get(ADD_BOS)
    if isinstance(word, bool):
        settings = read_json(folder / SETTINGS) | {ADD_BOS: word}
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        (folder / SETTINGS).write_text(text, encoding="utf-8")


def require_tokens(tokenizer: Any, source: ModelSource) -> None:
    """ModelError where a tokenizer makes no tokens of a text, or raises something."""
    # A setting of the wrong kind, such as a length that is an object, shows when it is used.
    if not explained(source, lambda: tokenizer(_PROBE)["input_ids"]):
        raise ModelError(
            f"the tokenizer of model {source.name!r} ({source.location}) makes no tokens of "
            f"{_PROBE!r}; copy that of the original model there"
        )


def require_template(source: ModelSource) -> None:
    """ConfigError where a model's tokenizer brings no chat template.

    Of a GGUF file and of a model whose tokenizer is not here, that shows when it is loaded.
    """
    if source.gguf or not source.local:
        return
    if load_tokenizer(source).chat_template is None:
        raise ConfigError(
            f"model {source.name!r} ({source.location}) has no chat template; leave out "
            "--chat-template, or add chat_template.jinja of the original model"
        )


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder holds a file that a tokenizer can be made of."""
    return any(path.is_file() for pattern in VOCABULARIES for path in folder.glob(pattern))


def surroundings(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before a text and after it."""
    bare = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(_PROBE)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []  # it writes the text itself in another way, so nothing can be taken off


def without_ending(tokenizer: Any) -> Any:
    """A tokenizer that puts nothing after a text: itself, or a copy of one that did.

    A text whose likelihood is asked is a beginning, and an EOS behind it cuts off the continuation.
    ModelError where the ending cannot be taken off.
    """
    before, after = surroundings(tokenizer)
    if not after:
        return tokenizer
    own = deepcopy(tokenizer)
    set_beginning(own, before)
    if surroundings(own) != (before, []):
        raise ModelError(
            f"the tokenizer ends every text with {tokenizer.convert_ids_to_tokens(after)}, and "
            "cannot be told not to; set add_eos_token to false in its tokenizer_config.json"
        )
    return own


def set_beginning(tokenizer: Any, ids: list[int]) -> None:
    """Let a tokenizer put just these ids before a text, and nothing behind it."""
    from tokenizers.processors import TemplateProcessing

    if getattr(tokenizer, "backend_tokenizer", None) is None:
        tokenizer.add_eos_token = False  # the slow tokenizers' own switch
        return
    tokens = tokenizer.convert_ids_to_tokens(ids)
    first = [f"{token}:0" for token in tokens]
    second = [f"{token}:1" for token in tokens]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*first, "$A:0"],
        pair=[*first, "$A:0", *second, "$B:1"],
        special_tokens=list(zip(tokens, ids, strict=True)),
    )


def check_fit(model: Any, tokenizer: Any, name: str) -> None:
    """ModelError where there is no tokenizer, or it makes ids for which the model has no embedding.

    name: of the model, for the message. A pad token may lie beyond: padding is masked, and any
    other id does as well.
    """
    if tokenizer is None:
        raise ModelError(
            f"{name} has no tokenizer; copy tokenizer.json and tokenizer_config.json of the "
            "original model there"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(
        tokenizer.vocab_size - 1, tokenizer.bos_token_id or 0, tokenizer.eos_token_id or 0
    )
    if largest >= rows:
        raise ModelError(
            f"the tokenizer of {name} has the token id {largest}, and the embedding of the model "
            f"ends at {rows - 1}; give the tokenizer that the model was trained with"
        )
