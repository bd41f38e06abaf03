"""`AutoModelForCausalLM.from_pretrained` on a folder of ours: the quantizer that `import qbench` registers.

Only what transformers 4.57 and 5 share is overridden. Everything heavy is imported when a model is
loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin


@register_quantization_config("qbench")
class QbenchConfig(QuantizationConfigMixin):
    """`quantization_config` as it is in config.json; `qbench.checkpoint.config` gives it its meaning."""

    def __init__(self, **entry: Any) -> None:
        self.quant_method = "qbench"
        for key, value in entry.items():
            setattr(self, key, value)


@register_quantizer("qbench")
class QbenchQuantizer(HfQuantizer):
    """Puts packed layers into the skeleton before the weights are read, and checks what was read."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from qbench.checkpoint.config import compare, read_layout
        from qbench.checkpoint.packed_linear import pack
        from qbench.files.shards import Shards
        from qbench.models.experts import unfuse_experts

        where = model.config.name_or_path
        layout = read_layout(
            {"quantization_config": self.quantization_config.to_dict()}, f"{where}/config.json"
        )
        self.shards = Shards(_folder(model.config))
        modules = compare(layout, self.shards)
        unfuse_experts(model, refuse=False)
        pack(model, {name: group.weight() for name, group in modules.items()})
        for module in (
            model.modules()
        ):  # without parameters there is nothing to initialize, as in experts taken apart
            if not (module._parameters or module._buffers):
                module._is_hf_initialized = True
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """transformers 4 rounds every floating tensor to the model's dtype: those of packed layers are read again."""
        from qbench.checkpoint.packed_linear import packed_layers

        for name, layer in packed_layers(model):
            for part in layer.parts:
                stated = self.shards.entries[f"{name}.{part}"].dtype
                if layer.get_buffer(part).dtype != stated:
                    device = layer.get_buffer(part).device
                    layer.register_buffer(part, self.shards.tensor(f"{name}.{part}").to(device))
        return model

    def is_serializable(self, safe_serialization: Any = None) -> bool:
        """`save_pretrained` writes the packed tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Gradients reach the inputs, so adapters can be trained; the quantized weights cannot."""
        return False

    @property
    def is_compileable(self) -> bool:
        """`torch.ops.qbench.linear` is an operator with a fake implementation."""
        return True


def _folder(config: Any) -> Path:
    """Where the files are: the folder itself, or the snapshot in the hub's cache."""
    from transformers.utils import cached_file

    where = config.name_or_path
    if Path(where).is_dir():
        return Path(where)
    return Path(
        cached_file(where, "config.json", revision=getattr(config, "_commit_hash", None))
    ).parent
