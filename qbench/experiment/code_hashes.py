"""Which code of qbench decides the numbers of cells, and its hashes, which are in their ids.

A name is a module of `qbench`, or a room, of which all modules count. Methods have a hash of their
own (`qbench.registry.source_hash`). `tests/experiment/test_code_hashes.py` goes through the imports
of a cell's process, and gives the reason for every module that is in no hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

# How a model in floating point is read and held: the one to quantize, and the one that is judged.
_MODELS = (
    "checkpoint.paged",
    "experiment.memory",
    "files.gguf_header",
    "files.shards",
    "models.blocks",
    "models.empty",
    "models.evaluating",
    "models.experts",
    "models.gguf_config",
    "models.gguf_file",
    "models.gguf_metadata",
    "models.gguf_tokenizer",
    "models.head",
    "models.loading",
    "models.paging",
    "models.pretrained",
    "models.published_names",
    "models.source",
    "models.tokenizers",
)
# How every method is applied: the walk, the losses, the formats, what another package is told; and
# how a quantized model is written and read. What judges does not hold it: two states of a format
# can be compared, and two ways to judge cannot.
QUANTIZING = (
    *_MODELS,
    "acceptance",
    "calibration",
    "checkpoint.block_files",
    "checkpoint.config",
    "checkpoint.folder",
    "checkpoint.packed_linear",
    "checkpoint.skeleton",
    "checkpoint.write_folder",
    "contracts",
    "exchange",
    "experiment.back_off",
    "experiment.cell_process",
    "experiment.foreign_cell",
    "experiment.foreign_results",
    "experiment.shared_tokens",
    "external.contract",
    "external.work",
    "files.codes",
    "files.model_folder",
    "files.safetensors_file",
    "files.written_folder",
    "formats",
    "quantization",
    "registry",
    "scheme",
    "verbs",
)
# What decides the tokens, the model that reads them, its logits, or the error of a score.
JUDGING = (
    *_MODELS,
    "calibration.head",
    "calibration.passes",
    "calibration.precision",
    "calibration.spool",
    "calibration.streamed",
    "calibration.walk",
    "calibration.windows",
    "experiment.evaluation",
    "stats.clustered",
    "stats.shares",
    "tasks",
)
# How bits are divided between layers.
DIVIDING = ("allocation", "calibration.fisher", "sensitivity")


def code_hash(names: Iterable[str], *besides: str) -> str:
    """12 hex digits for the code under these names.

    besides: other texts that are part of the hash, such as the version of a package.
    """
    digest = hashlib.sha256()
    for name in names:
        for path in _files(f"qbench.{name}"):
            digest.update(path.read_bytes())
    for text in besides:
        digest.update(text.encode())
    return digest.hexdigest()[:12]


def _files(module: str) -> Iterator[Path]:
    """The file of a module, or the files of a room; nothing is imported."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module named {module!r}", name=module)
    path = Path(spec.origin)
    yield from sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]
