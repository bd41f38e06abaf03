"""A tokenizer from elsewhere is first tried in a process of its own.

The tokenizers library may run out of memory, end the process, or match a pattern without end, all
by what a file says. So the file is loaded and used there within limits, once: the hash of what was
found harmless is kept in the cache. The process imports the library alone where there is a
tokenizer.json, which takes 0.1 s, and transformers otherwise.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from qbench.errors import StoreError
from qbench.files.atomic import write_bytes
from qbench.files.cache import cache_folder
from qbench.files.ordinary import require_ordinary_files
from qbench.files.shards import read_json
from qbench.files.written_folder import sha256

MEMORY = 1 << 30  # bytes; a file takes up to 20 times its size beside that
SECONDS = 1  # of processor time, and one more for 5 MB of file
FILE_BYTES = 200_000_000  # the largest tokenizers are those of 256,000 words, 33 MB
_PER_BYTE = 20
_BYTES_PER_SECOND = 5_000_000
_PER_WORD = 2000  # bytes that lists and arrays of a word of a GGUF file take, several times over
_WORDS_PER_SECOND = 5000  # on a slow machine; 20,000 on a fast one
_IMPORTING = 10  # seconds that transformers takes to import on a slow machine
_LONGEST = 1_000_000  # characters of a string in tokenizer_config.json; templates have 20,000
_LARGEST = 10_000_000  # number there, but for model_max_length
_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
_FILES = ("*token*", "*vocab*", "*.model", "*.tiktoken", "merges.txt", "tekken.json")
# Long runs make patterns that try all ways of cutting them take all time.
_TRIAL = """
import sys
path, memory, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except (ImportError, ValueError, OSError):
    pass  # a system without such limits
probe = "The sun is 1 star, isn't it? "
probe += " ".join(c * 64 for c in "aA0 .!_\\n\\u00e9\\u4e2d") + "!x"
try:
    if path.endswith("tokenizer.json"):
        from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_file(path)
        ids = tokenizer.encode(probe).ids
    else:
        from transformers import AutoTokenizer
        options = {"trust_remote_code": False}
        if path.endswith(".gguf"):
            path, _, options["gguf_file"] = path.rpartition("/")
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        ids = tokenizer(probe)["input_ids"]
    tokenizer.decode(ids)
except BaseException as error:
    print(type(error).__name__, str(error)[:200])
    sys.exit(1)
"""


def try_tokenizer(folder: Path) -> None:
    """StoreError where the tokenizer of a folder cannot be loaded and used within limits.

    What can be said against its files without loading them is said first.
    """
    require_ordinary_files(folder)
    _check_settings(folder)
    files = {path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()}
    size = sum(path.stat().st_size for path in files)
    if size > FILE_BYTES:
        raise StoreError(
            f"the tokenizer in {folder} has {size / 1e6:.0f} MB; up to "
            f"{FILE_BYTES // 1_000_000} MB are read: copy that of the original model"
        )
    state = "".join(f"{path.name}\0{sha256(path)}\0" for path in sorted(files))
    path = folder / "tokenizer.json"
    seconds = SECONDS + size // _BYTES_PER_SECOND
    memory = MEMORY + _PER_BYTE * size
    if not path.is_file():
        path = folder.resolve()
        seconds += _IMPORTING
        memory *= 4  # of address space, of which libraries take most
    _try_once(path, str(folder), state.encode(), memory, seconds)


def try_gguf_tokenizer(path: Path, header_bytes: int, words: int) -> None:
    """The same for the tokenizer of a GGUF file.

    path: absolute; nothing else may lie in its folder. header_bytes: in which the tokenizer is.
    words: of which transformers makes lists.
    """
    with path.open("rb") as file:
        state = file.read(header_bytes)
    seconds = SECONDS + _IMPORTING + words // _WORDS_PER_SECOND
    # The file is mapped as a whole, which takes address space alone.
    memory = 4 * MEMORY + _PER_BYTE * header_bytes + _PER_WORD * words + path.stat().st_size
    _try_once(path, "this GGUF file", state, memory, seconds)


def _try_once(path: Path, place: str, state: bytes, memory: int, seconds: int) -> None:
    """StoreError where a tokenizer cannot be used; what was found harmless is remembered.

    place: where it is, for the message. state: what decides it.
    """
    note = cache_folder() / "tokenizers" / hashlib.sha256(state).hexdigest()[:32]
    if note.is_file():
        return
    problem = _trial(path, memory, seconds)
    if problem:
        raise StoreError(
            f"the tokenizer in {place} cannot be used: {problem}; copy that of the original model"
        )
    with suppress(StoreError):  # without a cache it is tried again the next time
        write_bytes(note, b"")


def _trial(path: Path, memory: int, seconds: int) -> str | None:
    """What goes wrong, None where nothing does. memory: bytes; seconds: of processor time."""
    command = [sys.executable, "-I", "-c", _TRIAL, str(path), str(memory), str(seconds)]
    environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60 * seconds,  # of a machine that is busy with something else
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it takes more than {seconds} s"
    if done.returncode == 0:
        return None
    if done.returncode == 1:
        return " ".join(done.stdout.split()) or "it ends the process"
    if -done.returncode in (9, 24):  # SIGKILL, SIGXCPU
        return f"it takes more than {seconds} s of processor time"
    return f"it ends the process by signal {-done.returncode}, as where memory runs out"


def _check_settings(folder: Path) -> None:
    """StoreError where a file of settings has strings or numbers without measure.

    transformers makes tokens of them in loops, in this process.
    """
    for path in (folder / name for name in _SETTINGS):
        for key, value in _leaves(read_json(path)) if path.is_file() else ():
            too_long = isinstance(value, str) and len(value) > _LONGEST
            too_large = isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST
            if too_long or (too_large and key not in ("model_max_length", "max_length")):
                raise StoreError(
                    f"{path}: {key} is {'longer' if too_long else 'larger'} than any tokenizer's; "
                    "copy that of the original model"
                )


def _leaves(value: Any, key: str = "") -> Any:
    """(key, value) of everything in a JSON document that holds nothing."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield from _leaves(member, name)
    elif isinstance(value, list):
        for member in value:
            yield from _leaves(member, key)
    else:
        yield key, value
