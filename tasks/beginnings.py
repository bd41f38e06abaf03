"""The beginning of a prompt: the BOS of a model's training, or a template's first tokens."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from qbench.errors import ConfigError, ModelError
from qbench.models.tokenizers import ADD_BOS, set_beginning, surroundings, without_ending

if TYPE_CHECKING:
    from qbench.tasks.contract import Context

BOS_FAMILIES = ("llama", "mistral", "mixtral", "ministral", "gemma")
BOS_TOKENS = ("<s>", "<bos>", "<|begin_of_text|>")


def prepared(tokenizer: Any, model: Any, bos: str | None = None) -> Any:
    """The tokenizer of `begun`, with a pad token that is in the model's embedding.

    lm-eval needs a pad token; the mask makes it irrelevant which one.
    """
    own = begun(tokenizer, getattr(model.config, "model_type", ""), bos)
    rows = model.get_input_embeddings().weight.shape[0]
    if own.pad_token_id is None or own.pad_token_id >= rows:
        own.pad_token = own.eos_token
    return own


def begun(tokenizer: Any, model_type: str, bos: str | None = None) -> Any:
    """A copy of a tokenizer that begins a text as the model was trained, and puts no EOS after it.

    bos: `none` for nothing before a text, `tokenizer` for what the tokenizer itself puts there.
    ModelError where the tokenizer has no EOS.
    """
    own = without_ending(tokenizer)
    if bos is None:
        own = with_bos(own, model_type)
    elif bos == "none" and surroundings(own)[0]:
        own = deepcopy(own)
        set_beginning(own, [])
    if own.eos_token_id is None:
        raise ModelError(
            "the tokenizer names no EOS token, by which lm-eval ends and begins texts; set "
            "eos_token in the model's tokenizer_config.json"
        )
    return own


def with_bos(tokenizer: Any, model_type: str) -> Any:
    """A copy of the tokenizer that starts a text with BOS where the model was trained so.

    That is where the tokenizer asks for it, and for Llama, Mistral and Gemma with their own BOS
    tokens unless the tokenizer says no: without it a quantized model of these families collapses.
    Others are unchanged.
    """
    own = deepcopy(tokenizer)
    bos = own.bos_token
    asked = trained_bos(own, model_type) is not None
    if not asked or surroundings(own)[0] == [own.bos_token_id]:
        return own
    if getattr(own, "backend_tokenizer", None) is None:
        raise ConfigError(
            f"the tokenizer does not put {bos!r} before a text, as {model_type} wants; "
            "use a fast tokenizer"
        )
    set_beginning(own, [own.bos_token_id])
    return own


def trained_bos(tokenizer: Any, model_type: str) -> str | None:
    """The BOS that a model was trained to find before a text; None where that is not known."""
    bos: str | None = tokenizer.bos_token
    refused = tokenizer.init_kwargs.get(ADD_BOS) is False
    of_family = model_type.startswith(BOS_FAMILIES) and bos in BOS_TOKENS and not refused
    asked = of_family or getattr(tokenizer, ADD_BOS, False) is True
    return bos if asked and tokenizer.bos_token_id is not None else None


def text_facts(tokenizer: Any, model: Any) -> dict[str, Any]:
    """Of a model and its tokenizer, for the record: the BOS that is due, and what ends a text."""
    model_type = getattr(model.config, "model_type", "")
    return {
        "model_type": model_type,
        "trained_bos": trained_bos(tokenizer, model_type),
        "ending": list(tokenizer.convert_ids_to_tokens(surroundings(tokenizer)[1])),
    }


def prompt_facts(lm: Any, context: Context) -> dict[str, Any]:
    """How prompts were written, for the record.

    lm: of `qbench.tasks.lm.language_model`. beginning: the tokens before a prompt, or the first of
    a template. chat_template: sha256 of the template that was used, None where none was.
    """
    template = context.tokenizer.chat_template
    facts = text_facts(context.tokenizer, context.model)
    facts["beginning"] = _beginning(lm)
    facts["brings_template"] = template is not None
    facts["chat_template"] = None
    if lm.templated:
        facts["chat_template"] = hashlib.sha256(str(template).encode()).hexdigest()
    return facts


def _beginning(lm: Any) -> list[str]:
    """The tokens that every prompt starts with: the first of a template, or those before a text."""
    if lm.templated:
        turn = lm.apply_chat_template([{"role": "user", "content": "1"}])
        ids = lm.tok_encode(turn)[:1]
    else:
        ids = surroundings(lm.tokenizer)[0]
    return list(lm.tokenizer.convert_ids_to_tokens(ids))
