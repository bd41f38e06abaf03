"""The quantization of vLLM whose weights are ours: packed in memory, multiplied by our kernels.

Importing this registers it, so it is imported in a process of vLLM alone. Layers are fused (q, k,
v; gate, up) and cut for tensor-parallel ranks by vLLM's own loaders, which copy rows of each part
into parameters that are as large as what they hold in the file. Products are
`torch.ops.qbench.linear`, which has a fake implementation, so that compiled graphs hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.parameter import BasevLLMParameter, ModelWeightParameter

from qbench.checkpoint.config import SENTINEL, Group, read_layout
from qbench.checkpoint.servable import require_servable
from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.kernels.dispatch import describe, multiply
from qbench.serving.fused import fused, served_layers, widened
from qbench.serving.shards import Axes, Inputs, axes_of, cut, empty_weight, inputs_of, local_weight


@register_quantization_config("qbench")
class QbenchConfig(QuantizationConfig):
    """`quantization_config` of a folder: which layer is stored how."""

    def __init__(self, modules: dict[str, Group]) -> None:
        """modules: the layers' groups by their full names."""
        super().__init__()
        self.modules = modules

    @classmethod
    def get_name(cls) -> str:
        """The `quant_method`."""
        return "qbench"

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Those that some kernel takes on every device."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Of a GPU: none, as there always is a product."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None beside config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QbenchConfig:
        """StoreError or ConfigError where the entry is damaged, or a format is not served."""
        layout = read_layout({"quantization_config": config}, "config.json")
        return cls(served_layers(layout))

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Hold the folder against the model before anything is loaded, as vLLM does not.

        StoreError naming a tensor that is missing or not what config.json says, ConfigError naming
        a layer that vLLM computes in another way than it is stored.
        """
        require_servable(model_name, revision)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Take the names by which vLLM's model calls its layers."""
        renamed = {}
        for name, group in self.modules.items():
            renamed[hf_to_vllm_mapper.map_name(name) or name] = group
        self.modules = renamed

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """How a layer of vLLM's computes; ConfigError where its weights cannot be served."""
        if not isinstance(layer, LinearBase):
            for name in self.modules:
                if name == prefix or name.startswith(f"{prefix}."):
                    raise ConfigError(
                        f"{name} is quantized, and vLLM computes it in a {type(layer).__name__}, "
                        "which cannot use the products of qbench; load the model with "
                        "transformers"
                    )
            return None
        parent, _, own = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(own, [own])
        names = [f"{parent}.{part}" if parent else part for part in parts]
        members = {name: self.modules.get(name) for name in names}
        if not any(members.values()):
            return UnquantizedLinearMethod()
        return QbenchLinearMethod(prefix, fused(prefix, members))


class Part(ModelWeightParameter):
    """A part of a weight, as it is in the file: rows of several layers, or some of its inputs."""

    def __init__(
        self,
        data: Tensor,
        axes: Axes,
        inputs: Inputs,
        spec: Mapping[str, Any],
        weight_loader: Callable[..., None],
    ) -> None:
        """data: without values. inputs: of this rank. spec: of the weight with all inputs."""
        super().__init__(
            data=data,
            output_dim=axes.outputs,
            input_dim=axes.inputs or 0,
            weight_loader=weight_loader,
        )
        self.axes, self.inputs, self.spec = axes, inputs, spec

    def load_column_parallel_weight(self, loaded_weight: Tensor) -> None:
        """The rows of this rank."""
        super().load_column_parallel_weight(self._widened(loaded_weight))

    def load_merged_column_weight(self, loaded_weight: Tensor, **place: Any) -> None:
        """The rows of this rank of one of several layers, at their place."""
        super().load_merged_column_weight(self._widened(loaded_weight), **place)

    def load_qkv_weight(self, loaded_weight: Tensor, **place: Any) -> None:
        """The rows of this rank's heads, at the place of q, k or v."""
        super().load_qkv_weight(self._widened(loaded_weight), **place)

    def load_row_parallel_weight(self, loaded_weight: Tensor) -> None:
        """The inputs of this rank."""
        self.data.copy_(cut(self._widened(loaded_weight), self.axes, self.inputs))

    def _widened(self, loaded: Tensor) -> Tensor:
        return widened(loaded, self.data.dtype, self.spec)


@register_weight_loader_v2_supported_method
class QbenchLinearMethod(LinearMethodBase):
    """A linear layer, or several in one, whose weight stays as it is stored."""

    def __init__(self, name: str, weight: WeightFormat) -> None:
        """name: of the layer. weight: without values, stored as this one is; any rows."""
        self.name, self.weight = name, weight

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """A parameter for each part, and the empty `weight` that guards the file."""
        loader = extra_weight_attrs["weight_loader"]
        spec = self.weight.spec()
        ranks = input_size // input_size_per_partition
        rank = layer.tp_rank if ranks > 1 else 0
        inputs = inputs_of(self.name, input_size, spec["group_size"], rank, ranks)
        axes = axes_of(self.weight)
        tensors = empty_weight(self.weight, sum(output_partition_sizes), inputs)
        for name, tensor in tensors.items():
            part = Part(
                data=tensor, axes=axes[name], inputs=inputs, spec=spec, weight_loader=loader
            )
            layer.register_parameter(name, part)
        guard = torch.empty(0, dtype=torch.uint8)
        layer.register_parameter(SENTINEL, BasevLLMParameter(data=guard, weight_loader=loader))
        local = local_weight(self.weight, tensors, inputs)
        layer.qbench_parts = tuple(tensors)
        layer.qbench_description = describe(local)
        layer.qbench_inputs = inputs.count
        layer.qbench_dtype = params_dtype

    def process_weights_after_loading(self, layer: Any) -> None:
        """Plain parameters in the place of those that load; kernels derive their layout now."""
        for name in (*layer.qbench_parts, SENTINEL):
            data = getattr(layer, name).data
            setattr(layer, name, torch.nn.Parameter(data, requires_grad=False))
        first = getattr(layer, layer.qbench_parts[0])
        x = torch.zeros(1, layer.qbench_inputs, dtype=layer.qbench_dtype, device=first.device)
        self.apply(layer, x)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., in) -> (..., out) in the dtype of x."""
        parts = [getattr(layer, name) for name in layer.qbench_parts]
        return multiply(x, parts, bias, layer.qbench_description)
