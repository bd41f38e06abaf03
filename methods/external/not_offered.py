"""Packages that are known and cannot be run, each with the reason and what to take instead."""

from __future__ import annotations

from qbench.external.contract import Package

AUTO_GPTQ = Package(
    "auto-gptq",
    about="the first package of GPTQ, not maintained since 2024",
    unavailable=(
        "0.7.1 fails on import with transformers 5 (cannot import name 'no_init_weights' from "
        "'transformers.modeling_utils'), and no environment of its time was tried; take gptqmodel"
    ),
)
AUTOAWQ = Package(
    "autoawq",
    about="the first package of AWQ, deprecated since 2025",
    unavailable=(
        "0.2.9 was last tested by its makers with torch 2.6 and transformers 4.51, and no "
        "environment of its time was tried; take llm-compressor or gptqmodel"
    ),
)
QUANTO = Package(
    "quanto",
    about="optimum-quanto",
    unavailable=(
        "it has no worker yet: the user cannot choose its groups, which depend on the layer, and "
        "no reader here knows its files; take hqq"
    ),
)
TORCHAO = Package(
    "torchao",
    about="4-bit weights of torchao",
    unavailable="it has no worker yet, and no reader here knows its files; take hqq",
)
AQLM = Package(
    "aqlm",
    about="additive quantization",
    unavailable="its package runs models, and its quantizer is a repository of scripts for GPUs",
)
QUIP_SHARP = Package(
    "quip-sharp",
    about="incoherence and lattice codebooks",
    unavailable="it is a repository of scripts for GPUs without a package; `unisvq` is related",
)
EXL3 = Package(
    "exl3",
    about="trellis coding of exllamav3",
    unavailable="its kernels are CUDA alone, and quantizing needs a GPU",
)
