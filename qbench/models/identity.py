"""What exactly a model is: the hub's commit, or a hash of all that a folder's files hold.

A hash of 16 GB takes seconds, so that of a file is kept in the cache under what tells whether the
file is still the same: its place, inode, size, time of change, and first bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from qbench.embedded import cache_folder
from qbench.errors import ModelError, StoreError
from qbench.files.atomic import write_text
from qbench.files.ordinary import contents_of, require_ordinary_files
from qbench.files.shards import read_json
from qbench.files.written_folder import sha256
from qbench.models.loading import load_config
from qbench.models.source import ModelSource

# What of a folder is no part of the model: prose, pictures, and weights that are never opened.
IGNORED = (".md", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".png", ".jpg", ".lock")
REMEMBERED = 1 << 22  # bytes from which on a file's hash is kept
ANNOUNCED = 1 << 30  # bytes that take about a second

AGAIN = "since this run was planned; give the same command again, once nothing changes them"
Announce = Callable[[str], None]
_known: dict[str, str] = {}  # note -> hash, in this process: there may be no cache to write to


def resolved_revision(source: ModelSource, announce: Announce = lambda text: None) -> str:
    """What exactly is loaded: the hub's commit, or a hash of the content of a folder's files.

    It begins with `code-` where code that the model brings computes it, which makes it another one.
    announce: is told what is hashed where that takes over a second. ModelError where a file cannot
    be read, StoreError where one is a link out of the folder or no ordinary file.
    """
    brings_code = source.trust_remote_code and getattr(load_config(source), "auto_map", None)
    if not source.local:
        commit = getattr(load_config(source), "_commit_hash", None) or source.revision or "unknown"
        return f"code-{commit}" if brings_code else commit
    folder = Path(source.location)
    require_ordinary_files(folder)
    try:
        files = [source.path] if source.gguf else list(_files(folder))
        unknown = sum(path.stat().st_size for path in files if _remembered(path) is None)
        if unknown > ANNOUNCED:
            announce(f"hashing {unknown / 1e9:.1f} GB of {source.location}, once")
        # What a GGUF file is called says nothing of what is loaded.
        names = ["" if source.gguf else str(path.relative_to(folder)) for path in files]
        content = dict(zip(names, map(content_hash, files), strict=True))
    except OSError as error:
        raise ModelError(
            f"model {source.name!r}: {error.filename} cannot be read ({error.strerror})"
        ) from None
    text = json.dumps(content, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"code-{digest}" if brings_code else f"local-{digest}"


def require_unchanged(source: ModelSource, revision: str) -> None:
    """ModelError where a folder does not hold any more what it held when it had this revision."""
    if source.local and resolved_revision(source) != revision:
        raise ModelError(f"model {source.name!r}: its files have changed {AGAIN}")


def content_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, from the cache where the file has not changed since."""
    remembered = _remembered(path)
    if remembered is not None:
        return remembered
    digest = sha256(path)
    if path.stat().st_size >= REMEMBERED:
        _known[_note(path).name] = digest
        with suppress(StoreError):  # without a cache the next process hashes it again
            write_text(_note(path), digest)
    return digest


def _files(folder: Path) -> Iterator[Path]:
    """All files that make up the model, in a fixed order.

    Of folders inside only templates, code and what an index of shards names count: checkpoints of a
    training may lie there.
    """
    named = _shards(folder)
    for path in contents_of(folder):
        inner = path.parent != folder
        if path.name.startswith(".") or path.suffix in IGNORED or not path.is_file():
            continue
        if not inner or path.suffix in (".jinja", ".py") or path in named:
            yield path


def _shards(folder: Path) -> set[Path]:
    """The files of weights that the folder's indices name."""
    named = set()
    for index in folder.glob("*.index.json"):
        # a damaged one is said when it is read
        with suppress(StoreError, KeyError, TypeError, AttributeError):
            names = read_json(index)["weight_map"].values()
            named |= {folder / str(name) for name in names}
    return named


def _remembered(path: Path) -> str | None:
    if path.stat().st_size < REMEMBERED:
        return None
    note = _note(path)
    if note.name in _known:
        return _known[note.name]
    if not note.is_file():
        return None
    digest = note.read_text(errors="replace")
    return digest if len(digest) == 64 else None


def _note(path: Path) -> Path:
    """Where the hash of a file is kept, as long as it is this file in this state."""
    state = path.stat()
    with path.open("rb") as file:
        beginning = file.read(1 << 16)  # of safetensors, the header
    facts = [str(path.resolve()), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    key = hashlib.sha256(json.dumps(facts).encode() + beginning).hexdigest()[:32]
    return cache_folder() / "hashes" / key
