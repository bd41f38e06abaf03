"""A saved model on the Hugging Face hub: what would be uploaded, and the upload in one commit.

Nothing is uploaded that differs from its hash, and no file but the model's own. The card goes as it
is, but for a licence and a base model that are named here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qbench.errors import ConfigError, StoreError
from qbench.files.ordinary import contents_of, ordinary_file
from qbench.files.written_folder import CARD, verify
from qbench.models.provenance import card_metadata, card_text

RESULTS = ".eval_results"
LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,95}")  # a name of the hub's list


@dataclass(frozen=True)
class Upload:
    """What would be uploaded.

    files: by their names in the repository, each with where it is. metadata: of the card. lacks:
    what the card should name and does not.
    """

    folder: Path
    repository: str
    files: dict[str, Path]
    metadata: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(path.stat().st_size for path in self.files.values())

    @property
    def lacks(self) -> tuple[str, ...]:
        """What the card should name and does not, by the options that name it."""
        options = {"license": "--licence", "base_model": "--base-model"}
        return tuple(option for key, option in options.items() if not self.metadata.get(key))


def plan_upload(
    folder: Path, repository: str, licence: str | None = None, base_model: str | None = None
) -> Upload:
    """What `upload` would send to `repository`, OWNER/NAME on the hub.

    licence, base_model: for the card, in the place of what it names. ConfigError where a name is
    none of the hub's; StoreError where the folder was not written by qbench, or is damaged, and
    where its results are not those that the card names.
    """
    _require_id("the repository", repository)
    if base_model is not None:
        _require_id("--base-model", base_model)
    if licence is not None and not LICENCE.fullmatch(licence):
        raise ConfigError(
            f"--licence {licence!r} is no name of a licence on the hub; give one such as "
            "apache-2.0 or mit, or other"
        )
    for name, problem in verify(folder).items():
        if problem is not None:
            raise StoreError(f"{folder / name} {problem}; quantize again, or remove what was added")
    metadata = card_metadata(folder / CARD)
    files = {}
    for path in [*contents_of(folder), *_result_files(folder, _scored_tasks(folder, metadata))]:
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path
    metadata |= {"license": licence} if licence else {}
    metadata |= {"base_model": base_model} if base_model else {}
    plan = Upload(folder, repository, files, metadata)
    _card(plan)
    return plan


def upload(plan: Upload, private: bool = False, api: Any = None) -> str:
    """Make the repository, where it is not there, and send all files in one commit; its address.

    api: of huggingface_hub, by default the one of the user who is logged in. ConfigError with the
    reason where the hub refuses or does not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = []
    for name, path in plan.files.items():
        content = _card(plan) if name == CARD else str(path)
        operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content))
    api = api or HfApi()
    try:
        address = api.create_repo(plan.repository, private=private, exist_ok=True)
        api.create_commit(
            plan.repository, operations, commit_message="Quantized by qbench (qbench-llm)"
        )
    except Exception as error:  # of the hub, of the network, and of what lies between
        raise ConfigError(
            f"{plan.repository} cannot be written: {type(error).__name__}: {error}; "
            "`hf auth login` gives a token that may, `qbench doctor` says whether the hub answers"
        ) from error
    return str(address)


def _scored_tasks(folder: Path, metadata: Mapping[str, Any]) -> set[str]:
    """The tasks of the card's `model-index`: the first words of its metrics' names.

    StoreError where it is no list of entries with results.
    """
    index = metadata.get("model-index") or []
    names: set[str] = set()
    for entry in index if isinstance(index, list) else [None]:
        results = entry.get("results") if isinstance(entry, dict) else None
        if not isinstance(results, list):
            raise StoreError(
                f"{folder / CARD}: its model-index is no list of entries with results, as the hub "
                "has it; correct it there, or remove it"
            )
        for result in results:
            metrics = result.get("metrics") if isinstance(result, dict) else None
            for metric in metrics if isinstance(metrics, list) else ():
                name = metric.get("name") if isinstance(metric, dict) else None
                names.add(str(name).partition(" ")[0])
    return names


def _result_files(folder: Path, tasks: Collection[str]) -> Iterator[Path]:
    """The files of `.eval_results`, which the index does not hash, as they come with scores.

    StoreError where one is no ordinary file in the folder, or not of `tasks`, those of the card.
    """
    for path in sorted((folder / RESULTS).glob("*.yaml")):
        if (folder / RESULTS).is_symlink() or path.is_symlink():
            raise StoreError(f"{path} is a link or in one; remove it, or copy the file there")
        if path.stem not in tasks:
            raise StoreError(
                f"{path} is of no task that the model-index of {CARD} names; remove what was added"
            )
        yield ordinary_file(path, folder)


def _card(plan: Upload) -> bytes:
    """README.md with the metadata of the plan; unchanged where it has these already.

    StoreError where its own cannot be read, so that nothing can be put beside them.
    """
    from huggingface_hub import ModelCard

    text = card_text(plan.folder / CARD)
    if plan.metadata == card_metadata(plan.folder / CARD):
        return text.encode()
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError) as error:
        raise StoreError(
            f"{plan.folder / CARD}: the lines between --- at its head are no YAML; "
            "correct them, or remove them"
        ) from error
    for key in ("license", "base_model"):
        if plan.metadata.get(key):
            card.data[key] = plan.metadata[key]
    return str(card).encode()


def _require_id(what: str, name: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        owned = name.count("/") == 1
    except HFValidationError:
        owned = False
    if not owned:
        raise ConfigError(f"{what} {name!r} is no name of the hub; give OWNER/NAME")
