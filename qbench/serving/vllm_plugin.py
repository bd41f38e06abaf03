"""vLLM serves folders of ours: `vllm serve FOLDER`, without a flag, where both are installed.

vLLM calls `register` in each of its processes, by the entry point `vllm.general_plugins` of this
package. Nothing of vLLM or torch is imported before.
"""

from __future__ import annotations

from importlib import import_module


def register() -> None:
    """Make `quant_method: qbench` known to vLLM."""
    import_module("qbench.serving.vllm_layers")
