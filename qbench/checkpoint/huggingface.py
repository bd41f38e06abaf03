"""`AutoModelForCausalLM.from_pretrained` on a folder of ours: the quantizer of transformers for it.

`import qbench` registers it. Only what transformers 4.57 and 5 share is overridden. Everything
heavy is imported when a model is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin


@register_quantization_config("qbench")
class QbenchConfig(QuantizationConfigMixin):
    """`quantization_config` as it is in config.json.

    `qbench.checkpoint.config` gives it its meaning.
    """

    def __init__(self, **entry: Any) -> None:
        self.quant_method = "qbench"
        for key, value in entry.items():
            setattr(self, key, value)


@register_quantizer("qbench")
class QbenchQuantizer(HfQuantizer):
    """Puts packed layers into the model before its weights are read, and checks what was read."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from qbench.checkpoint.config import compare, read_layout
        from qbench.checkpoint.packed_linear import pack
        from qbench.checkpoint.skeleton import require_whole
        from qbench.files.shards import Shards
        from qbench.models.experts import unfuse_experts

        config = {"quantization_config": self.quantization_config.to_dict()}
        layout = read_layout(config, f"{model.config.name_or_path}/config.json")
        self.shards = Shards(
            snapshot(model.config.name_or_path, getattr(model.config, "_commit_hash", None))
        )
        modules = compare(layout, self.shards)
        unfuse_experts(model, refuse=False)
        pack(model, {name: group.weight() for name, group in modules.items()})
        require_whole(model, self.shards.entries, self.shards.folder)
        _spare_emptied_modules(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from qbench.checkpoint.packed_linear import packed_layers

        # transformers 4 rounds every floating tensor to the model's dtype, and a rounded scale is
        # another weight: such parts of packed layers are read again.
        for name, layer in packed_layers(model):
            for part in layer.parts:
                loaded = layer.get_buffer(part)
                if loaded.dtype != self.shards.entries[f"{name}.{part}"].dtype:
                    exact = self.shards.tensor(f"{name}.{part}")
                    layer.register_buffer(part, exact.to(loaded.device))
        return model

    def is_serializable(self, safe_serialization: Any = None) -> bool:
        """Yes: `save_pretrained` writes the packed tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """No: gradients reach the inputs, for adapters, but not the quantized weights."""
        return False

    @property
    def is_compileable(self) -> bool:
        """Yes: `torch.ops.qbench.linear` is an operator with a fake implementation."""
        return True


def _spare_emptied_modules(model: Any) -> None:
    """Keep transformers from initializing the modules whose stacks are linear layers now.

    It would miss the stacks. All other modules are initialized, even those without tensors of their
    own: such a one may fill the buffers of its children, which are in no file.
    """
    from qbench.models.experts import Experts

    module: Any
    for experts in model.modules():
        if not isinstance(experts, Experts):
            continue
        for module in experts.modules():
            if not (module._parameters or module._buffers):
                module._is_hf_initialized = True


def snapshot(name: str, revision: str | None = None) -> Path:
    """Where the files are: the folder itself, or the snapshot in the hub's cache."""
    from transformers.utils import cached_file

    if Path(name).is_dir():
        return Path(name)
    return Path(cached_file(name, "config.json", revision=revision)).parent
