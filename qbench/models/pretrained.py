"""`from_pretrained` of transformers: no code is run, and errors say what to do.

transformers asks on the terminal whether to run code of a folder, and raises nearly anything where
a folder is damaged.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from qbench.errors import ModelError, QbenchError
from qbench.files.ordinary import ordinary_file, require_ordinary_files
from qbench.models.source import ModelSource, local_folder

ALONE = "model.gguf"
_NAMED_PACKAGE = re.compile(r"pip install (?:-U |--upgrade )?[`'\"]?([A-Za-z][\w.-]*)")
_UNREACHABLE = ("offline", "connect", "connection", "resolve", "timed out", "internet")


def from_transformers(source: ModelSource, auto_class: Any, **options: Any) -> Any:
    """`auto_class.from_pretrained` of a source: nothing of it is executed unless it is trusted.

    ModelError that says what to do, in place of whatever transformers raises.
    """

    def load() -> Any:
        if source.gguf:
            # its bar goes straight to stderr, and cannot be switched off
            with alone(source.path) as folder, redirect_stderr(StringIO()):
                return auto_class.from_pretrained(folder, gguf_file=ALONE, **options)
        if source.local:
            require_ordinary_files(Path(source.location))
        elif local_folder(source) is None:
            _require_hub(source)
        return auto_class.from_pretrained(
            source.location,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            **options,
        )

    return explained(source, load)


def _require_hub(source: ModelSource) -> None:
    """Ask the hub for a model once; raises where there is no answer.

    What is not in the cache transformers asks for six times, over 25 seconds.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    # A refusal is an answer, of which transformers knows more.
    with suppress(HfHubHTTPError):
        get_hf_file_metadata(hf_hub_url(source.location, "config.json", revision=source.revision))


@contextmanager
def alone(path: Path) -> Iterator[Path]:
    """A folder that holds one file, as `ALONE`.

    transformers would take what lies beside a GGUF file, such as the settings of another tokenizer.
    StoreError where the file is a link out of its folder.
    """
    target = ordinary_file(path, path.parent).resolve()
    with tempfile.TemporaryDirectory(prefix="qbench-gguf-") as folder:
        place = Path(folder)
        (place / ALONE).symlink_to(target)
        yield place


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and its table of tensors, of which our own messages speak."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def explained(source: ModelSource, load: Callable[[], Any]) -> Any:
    """The value of `load`; whatever it raises becomes a ModelError that says what to do."""
    try:
        with quiet():
            return load()
    except QbenchError:
        raise
    except Exception as error:  # a folder from elsewhere makes transformers raise nearly anything
        raise ModelError(_advice(source, error)) from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise ModelError(_advice(source, RuntimeError(str(error)))) from None


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a library in Rust, such as tokenizers; it is no Exception."""
    return type(error).__name__ == "PanicException"


def _missing_package(error: ImportError) -> str:
    """Which package is needed. transformers says it in words of its own, in one of its lines."""
    text = str(error)
    named = _NAMED_PACKAGE.search(text)
    package = error.name or (named and named[1])
    if package:
        return f"it needs the package {package!r}, which is not installed; `pip install {package}`"
    return f"it needs a package that is not installed: {' '.join(text.split())}"


def _advice(source: ModelSource, error: Exception) -> str:
    """One sentence on why a model cannot be loaded, and what to do, by the words of the error."""
    text = str(error).strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    words = f"{type(error).__name__} {error}".lower()
    place = source.location
    if source.revision:
        place += f"@{source.revision}"
    model = f"model {source.name!r} ({place})"
    if "trust_remote_code" in words:
        return (
            f"{model} brings code of its own, which is not run; read it, and give "
            "--trust-remote-code where you trust it"
        )
    if isinstance(error, ImportError):
        return f"{model} cannot be loaded: {_missing_package(error)}"
    if source.gguf:
        return (
            f"{model} cannot be loaded: {reason}; transformers reads GGUF files, and not all "
            "kinds of them: give another file, or a folder with the model's safetensors"
        )
    if source.local:
        return (
            f"{model} cannot be loaded: {reason}; the folder needs config.json, safetensors and a "
            f"tokenizer{_pickled(Path(source.location))}"
        )
    if "gated" in words or "401" in words or "403" in words:
        return (
            f"{model} is gated; accept its licence on its page at the hub, "
            "then run `hf auth login`, or set HF_TOKEN"
        )
    if any(word in words for word in _UNREACHABLE):
        return (
            f"{model} is not in the local cache and the hub cannot be reached; connect, or "
            f"download it elsewhere with `hf download {source.location}` and give --model that "
            "folder; `--model smollm2-135m` needs no network"
        )
    return (
        f"{model} cannot be loaded: {reason}; "
        "check the name and the revision, or give a local folder"
    )


def _pickled(folder: Path) -> str:
    """What to do about weights that would have to be unpickled, where a folder has only such."""
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    if not pickles or any(folder.glob("*.safetensors")):
        return ""
    return (
        f"; {sorted(pickles)[0]} is a pickle, which can run code and is not opened: convert it "
        "where you trust it, with AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
    )
