"""autoawq: AWQ, and the folder that it writes."""

from __future__ import annotations

import torch
from awq import AutoAWQForCausalLM
from awq.utils.packing_utils import dequantize_gemm
from worker_files import Work, copy_tokenizer, older_folder, run


def quantize(work: Work) -> None:
    """Quantize by the package's defaults at the groups that are asked."""
    settings = work.settings
    samples, length = work.calibration.shape
    config = {
        "w_bit": settings["bits"],
        "q_group_size": settings["group_size"] or -1,
        "zero_point": True,
        "version": "GEMM",
    }
    model = AutoAWQForCausalLM.from_pretrained(
        str(older_folder(work)), torch_dtype=torch.float32, device_map=work.device
    )
    with work.quantizing():
        model.quantize(
            quant_config=config,
            calib_data=work.rows(),
            max_calib_samples=samples,
            max_calib_seq_len=length,  # longer samples would be left out
        )
    work.used = config
    model.save_quantized(str(work.checkpoint))
    copy_tokenizer(work)
    weights = {}
    for name, layer in model.model.named_modules():
        if hasattr(layer, "qweight"):
            weight = dequantize_gemm(
                layer.qweight, layer.qzeros, layer.scales, layer.w_bit, layer.group_size
            )
            weights[name] = weight.T  # it is (in, out)
    work.write_dequantized(weights)


if __name__ == "__main__":
    run(quantize)
