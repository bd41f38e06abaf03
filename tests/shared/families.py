"""Tiny decoders with random weights, of families that differ in what their blocks are made of."""

from __future__ import annotations

COMMON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = COMMON | {"intermediate_size": 64, "num_key_value_heads": 1}
MIXED = {
    "head_dim": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
OPT = COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 32}
GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES = {  # the class of the config and its values
    "llama": ("LlamaConfig", WIDE | {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", WIDE | {"sliding_window": 8}),
    "qwen2-biases": ("Qwen2Config", WIDE),
    "qwen3": ("Qwen3Config", WIDE | {"head_dim": 16}),
    "gemma": ("GemmaConfig", WIDE | {"head_dim": 16}),
    "gemma3-mixed-masks": ("Gemma3TextConfig", WIDE | MIXED),
    "phi3-fused": ("Phi3Config", WIDE | {"pad_token_id": 0}),
    "opt": ("OPTConfig", OPT),
    "gpt2-conv1d": ("GPT2Config", GPT2),
    "mixtral-experts": ("MixtralConfig", WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def randomized(kind, config, seed: int = 0):
    """A model of a transformers class, sharper than the initialization, so that scores differ."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        for parameter in model.parameters():
            parameter.data *= 4
    return model.eval()


def family_model(config: str, values: dict[str, object]):
    """A random model of the named class of configs, the same every time."""
    import transformers

    build = transformers.AutoModelForCausalLM.from_config
    return randomized(build, getattr(transformers, config)(**values))
