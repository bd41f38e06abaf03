"""llm-compressor's GPTQ and AWQ on single layers: started by `peer_layers.py` in its environment.

FOLDER/layers.safetensors holds LAYER.weight (out, in) and LAYER.hessian (in, in), and for the jobs
of FOLDER/jobs.json NUMBER.scale and NUMBER.zero (out, groups). It leaves the same parts as
`peer_layers_gptqmodel.py`. FOLDER/awq.json is a list of searches on models of a single block, whose
tokens 0, 1, .. are one calibration text; the settings under `alike` and `by_default` become the
sites that AWQ has searched under them, with the error of every ratio that it tried.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SITES: list[dict[str, Any]] = []  # that were searched, with their errors


class Recorded(AWQModifier):
    """Its AWQ, which keeps every error that it computes."""

    def _compute_best_scale(self, mapping: Any, *rest: Any) -> Any:
        names = [name.removeprefix("model.layers.0.") for name in mapping.balance_names]
        SITES.append({"site": " ".join(names), "errors": []})
        return super()._compute_best_scale(mapping, *rest)

    def _compute_loss(self, *outputs: Any) -> float:
        loss = super()._compute_loss(*outputs)
        SITES[-1]["errors"].append(loss)
        return loss


def arguments(bits: int, group_size: int, **more: Any) -> QuantizationArgs:
    """Integers with zero points, in groups."""
    return QuantizationArgs(
        num_bits=bits,
        type="int",
        symmetric=False,
        strategy="group",
        group_size=group_size,
        **more,
    )


def rounded(job: dict[str, Any], layers: dict[str, torch.Tensor], number: int) -> dict[str, Any]:
    """What its GPTQ makes of one layer on a grid that is handed over."""
    scale = layers[f"{number}.scale"]
    zero = layers[f"{number}.zero"].float()
    middle = 2 ** (job["bits"] - 1)  # its codes have a sign
    dequantized, _, failed = quantize_weight(
        layers[f"{job['layer']}.weight"][None].clone(),
        layers[f"{job['layer']}.hessian"][None].clone(),
        scale[None],
        zero[None] - middle,
        None,
        arguments(job["bits"], job["group_size"], **job["settings"]),
        percdamp=job["damp"],
    )
    if failed.any():
        raise SystemExit(f"its Cholesky factorization of {job['layer']} failed")
    zero = zero.repeat_interleave(job["group_size"], 1)
    codes = (dequantized[0] / scale.repeat_interleave(job["group_size"], 1) + zero).round()
    return {
        "codes": codes.to(torch.uint8),
        "zero": zero.to(torch.uint8),
        "dequantized": dequantized[0].contiguous(),
    }


def searched(search: dict[str, Any], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The sites of a model of one block, with the error of every ratio that AWQ tries."""
    SITES.clear()
    model = AutoModelForCausalLM.from_pretrained(search["model"], dtype=torch.float32)
    rows = torch.arange(model.config.vocab_size).view(-1, search["length"])
    weights = arguments(search["bits"], search["group_size"])
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(search["model"]),
        dataset=Dataset.from_dict(
            {"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()}
        ),
        recipe=[
            Recorded(**settings),
            QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]),
        ],
        max_seq_length=search["length"],
        num_calibration_samples=len(rows),
    )
    return [dict(site) for site in SITES]


def main() -> None:
    """All jobs and searches."""
    # Pages cannot be pinned where there is no accelerator.
    IntermediatesCache.pin_memory = lambda *arguments, **named: None
    folder = Path(sys.argv[1])
    layers = load_file(folder / "layers.safetensors")
    tensors = {}
    for number, job in enumerate(json.loads((folder / "jobs.json").read_text())):
        parts = rounded(job, layers, number)
        tensors |= {f"{number}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, folder / "llm-compressor.safetensors")
    searches = json.loads((folder / "awq.json").read_text())
    for search in searches:
        for kind in ("alike", "by_default"):
            search[kind] = searched(search, search[kind])
    (folder / "awq.json").write_text(json.dumps(searches))


if __name__ == "__main__":
    main()
