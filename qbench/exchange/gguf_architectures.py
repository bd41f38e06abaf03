"""The architectures of GGUF that models are written as, and in what they differ.

    model_type      GGUF    in a block beside the matrices and norms of all   rows of q and k
    llama, mistral  llama                                                     in pairs
    qwen2           qwen2   attn_q, attn_k, attn_v, all with `.bias`          as they are
    qwen3           qwen3   attn_q_norm, attn_k_norm                          as they are

In pairs: within a head, in the order of llama.cpp's other rotation. Llama 3's stretched rope is
read of `llama` alone. Source: llama.cpp, conversion/llama.py and conversion/qwen.py;
src/models/llama.cpp, qwen2.cpp and qwen3.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES

_OF_ALL = (
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
    "attn_norm.weight",
    "ffn_norm.weight",
)


@dataclass(frozen=True)
class Architecture:
    """How GGUF describes models of one kind.

    kind: in the gguf package. ropes: values of rope_type that it can say. own: tensors of a block
    beside those of all. paired: layers whose rows stand in pairs.
    """

    kind: MODEL_ARCH
    ropes: tuple[str, ...] = ("default",)
    own: tuple[str, ...] = ()
    paired: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What a file calls it, and with which its metadata begin."""
        return MODEL_ARCH_NAMES[self.kind]

    def tensors(self, blocks: int, tied: bool) -> set[str]:
        """Names of the tensors of a model of so many blocks. tied: whether it has no own head."""
        names = {"token_embd.weight", "output_norm.weight"}
        for block in range(blocks):
            names |= {f"blk.{block}.{tensor}" for tensor in (*_OF_ALL, *self.own)}
        return names if tied else names | {"output.weight"}


_LLAMA = Architecture(MODEL_ARCH.LLAMA, ropes=("default", "llama3"), paired=("attn_q", "attn_k"))
# By the model_type of transformers.
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture(MODEL_ARCH.QWEN2, own=("attn_q.bias", "attn_k.bias", "attn_v.bias")),
    "qwen3": Architecture(MODEL_ARCH.QWEN3, own=("attn_q_norm.weight", "attn_k_norm.weight")),
}
