"""auto-round: SignRound, plain or with its extension, in a layout that holds every zero point."""

from __future__ import annotations

import torch
from auto_round import AutoRound
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from worker_files import Work, linear_layers, run

LAYOUT = "auto_round"  # its own: the one of GPTQ cannot hold a zero point of 0, and stores 1
AWQ = "auto_awq"  # what its own becomes at 4 bits with zero points, where only this name is packed


class TensorRows(Dataset[torch.Tensor]):
    """Each row of token ids is a sample."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.tokens[index]


def quantize(work: Work) -> None:
    """Quantize by the package's defaults at the bits, groups and grid that are asked."""
    settings = work.settings
    parameters = work.parameters
    samples, length = work.calibration.shape
    layout = AWQ if settings["bits"] == 4 and not settings["symmetric"] else LAYOUT
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    rounding = AutoRound(
        model,
        AutoTokenizer.from_pretrained(work.model),
        bits=settings["bits"],
        group_size=settings["group_size"] or -1,
        sym=settings["symmetric"],
        iters=parameters["iters"],
        nsamples=samples,
        seqlen=length,
        batch_size=min(parameters["batch_size"], samples),
        dataset=DataLoader(TensorRows(work.calibration), batch_size=1),
        device_map=work.device,
        enable_torch_compile=False,
        enable_alg_ext=settings["method"].endswith(":extended"),
    )
    with work.quantizing():
        quantized, _ = rounding.quantize()
    work.used = {**parameters, "samples": samples, "length": length, "layout": layout}
    weights = {name: layer.weight.detach().clone() for name, layer in linear_layers(quantized)}
    work.write_dequantized(weights)
    rounding.save_quantized(str(work.checkpoint), format=layout, inplace=True)


if __name__ == "__main__":
    run(quantize)
