"""The tokenizer of a GGUF file: transformers makes it, and llama.cpp's rules are held against it.

`tokenizer.ggml.pre` is llama.cpp's name for how a text is split before the merges, and for two more
rules. transformers splits by the names that it knows and as GPT-2 does otherwise:

    gpt-2, phi-2, mpt, olmo          as GPT-2 does
    smollm, starcoder, refact, ...   every digit apart, then as GPT-2 does
    llama-bpe, tekken, and likes     a word that is in the vocabulary is not built from merges, and
                                     the beginning of a text is marked unless the file says not to

Neither composes a text first (NFC), as the tokenizers of Qwen do whose name is `qwen2`. Any other
name is refused. Source: llama.cpp, src/llama-vocab.cpp, `llama_vocab::impl::load` and
`llm_tokenizer_bpe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbench.errors import ModelError
from qbench.models.gguf_file import gguf_header, words_of
from qbench.models.pretrained import ALONE, alone, from_transformers
from qbench.models.source import ModelSource
from qbench.models.tokenizer_trial import try_gguf_tokenizer
from qbench.models.tokenizers import ADD_BOS, require_tokens, set_beginning, surroundings

_LIKE_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo")
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b")
_WHOLE_WORDS = (
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
)
_BYTE_LEVEL = "gpt2"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what a space is in the words of SentencePiece


def load_gguf_tokenizer(source: ModelSource) -> Any:
    """The tokenizer of a GGUF file, tried in a process of its own first.

    ModelError where there is none, or it splits text in a way that is not known here.
    """
    from transformers import AutoTokenizer

    header = gguf_header(source)
    if "tokenizer.ggml.tokens" not in header.arrays:
        raise ModelError(
            f"model {source.name!r} ({source.path}) has no tokenizer; give a file that has one"
        )
    if not header.metadata.get("tokenizer.ggml.model"):
        raise ModelError(
            f"model {source.name!r} ({source.path}) does not say what kind of tokenizer it has "
            "(tokenizer.ggml.model); give a file that does"
        )
    with alone(source.path) as folder:
        try_gguf_tokenizer(folder / ALONE, header.nbytes, words_of(header))
    tokenizer = from_transformers(source, AutoTokenizer)
    require_tokens(tokenizer, source)
    return as_llama_cpp(tokenizer, header.metadata, source)


def as_llama_cpp(tokenizer: Any, metadata: Mapping[str, Any], source: ModelSource) -> Any:
    """The tokenizer that transformers made of a file, with the rules above.

    metadata: the file's. ModelError for rules that are not known here.
    """
    pre = metadata.get("tokenizer.ggml.pre")
    kind = metadata.get("tokenizer.ggml.model")
    if kind == _BYTE_LEVEL:
        _set_split(tokenizer, pre, source)
        if pre in _WHOLE_WORDS:
            tokenizer.backend_tokenizer.model.ignore_merges = True
    elif kind == "llama" and metadata.get("tokenizer.ggml.add_space_prefix") is False:
        first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids)
        if first[0].startswith(_SPACE):
            raise ModelError(
                f"model {source.name!r}: its file says that no space is put before a text, and "
                "transformers' reader of GGUF puts one; give a folder with the model's safetensors"
            )
    marks = metadata.get(f"tokenizer.ggml.{ADD_BOS}")
    if isinstance(marks, bool):
        tokenizer.init_kwargs[ADD_BOS] = marks
    elif pre in _WHOLE_WORDS:
        marks = True
    bos = tokenizer.bos_token_id
    if isinstance(marks, bool) and bos is not None:
        before, after = surroundings(tokenizer)
        wanted = [bos] if marks else []
        if before != wanted and not after:
            set_beginning(tokenizer, wanted)
    return tokenizer


def _set_split(tokenizer: Any, pre: Any, source: ModelSource) -> None:
    """Let a byte-level tokenizer split a text as llama.cpp does by this name."""
    from tokenizers import pre_tokenizers

    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        raise ModelError(
            f"model {source.name!r} is a GGUF file, whose tokenizer this version of transformers "
            "does not read as llama.cpp does; `pip install -U transformers`"
        ) from None
    if pre in _DIGITS_APART:
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    elif pre not in (*_LIKE_GPT2, *GGUF_PRE_TOKENIZER_SPLITS):
        known = ", ".join((*_LIKE_GPT2, *_DIGITS_APART, *GGUF_PRE_TOKENIZER_SPLITS))
        raise ModelError(
            f"model {source.name!r}: its file names the pre-tokenizer {pre!r}, of which no rule is "
            f"known here (known are {known}); give a folder with the model's safetensors"
        )
