"""Data sets of the Hugging Face hub, pinned to a commit: the only part that goes to the network.

The commit is resolved once per process; without a network, the one that the local cache knows is
used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import DataError
from qbench.tasks.data import dataset, table, tables, unix_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datasets import Dataset


@dataclass(frozen=True)
class HubSource:
    """The data sets on the hub, each at the commit that is current when it is first asked for."""

    @property
    def label(self) -> str:
        """`hub`."""
        return "hub"

    def describe(self) -> str:
        """Which repositories."""
        repositories = dict.fromkeys(declared.repository for declared in tables().values())
        return f"hub ({', '.join(repositories)})"

    def splits(self, table_name: str) -> tuple[str, ...]:
        """All that are declared."""
        return table(table_name).splits

    def rows(self, table_name: str, split: str) -> Dataset:
        """The rows of one split at the resolved commit."""
        declared = table(table_name)
        return _rows(declared.repository, declared.config, split)

    def text(self, table_name: str) -> list[str]:
        """The first split's column `text`, or the first texts of the shard that is declared."""
        declared = table(table_name)
        split = declared.splits[0]
        if split in declared.shards:
            shard = declared.shards[split]
            return list(_texts_of_shard(declared.repository, shard, declared.texts))
        return list(self.rows(table_name, split)["text"])[: declared.texts]

    def sha256(self, table_name: str) -> str:
        """The commit of the data set's repository."""
        return revision(table(table_name).repository)

    def task_name(self, task: str) -> str:
        """Unchanged: the data is the real thing."""
        return task

    def table_name(self, table_name: str) -> str:
        """`allenai/c4@1588ec4`: repository and commit."""
        return f"{table(table_name).repository}@{self.sha256(table_name)[:7]}"

    def licence(self, table_name: str) -> str:
        """As declared by the data set's publisher."""
        return table(table_name).licence


@lru_cache(maxsize=32)
def _rows(repository: str, config: str | None, split: str) -> Dataset:
    """One split at the resolved commit."""
    commit = revision(repository)
    from datasets import load_dataset

    try:
        rows = load_dataset(repository, config, split=split, revision=commit)
    except Exception as error:  # the hub, its client and the readers have no common root
        raise _unreachable(repository, error) from error
    return dataset(unix_lines(rows.to_dict()))


@lru_cache(maxsize=2)
def _texts_of_shard(repository: str, shard: str, count: int | None) -> tuple[str, ...]:
    """The first texts of one file, streamed, in the file's order."""
    commit = revision(repository)
    from datasets import load_dataset

    try:
        rows: Iterable[dict[str, Any]] = load_dataset(
            repository,
            data_files={"only": shard},
            split="only",
            streaming=True,
            revision=commit,
        )
        return tuple(unix_lines(row["text"]) for row in islice(rows, count))
    except Exception as error:
        raise _unreachable(repository, error) from error


def refusal(names: Sequence[str]) -> str | None:
    """Why these tables cannot be had, neither from the hub nor from its local cache; or None.

    Nothing is downloaded where the hub answers; where it does not, what the cache has is read.
    """
    source = HubSource()
    for name in names:
        declared = table(name)
        try:
            source.sha256(name)
            if not isinstance(_current(declared.repository), Exception):
                continue
            if declared.running_text:
                source.text(name)
                continue
            for split in declared.splits:
                source.rows(name, split)
        except DataError as error:
            return str(error)
    return None


def _current(repository: str) -> str | Exception | None:
    """The commit that the hub names for a data set, or why it does not answer."""
    from huggingface_hub import HfApi

    try:
        commit: str | None = HfApi().dataset_info(repository, timeout=20).sha
    except Exception as error:  # the hub and its client have no common root
        return error
    return commit


@lru_cache(maxsize=32)
def revision(repository: str) -> str:
    """The commit hash of a data set's main branch."""
    from huggingface_hub.constants import HF_HUB_CACHE

    commit = _current(repository)
    if isinstance(commit, Exception):
        error = commit
        cached = Path(HF_HUB_CACHE, f"datasets--{repository.replace('/', '--')}", "refs", "main")
        if not cached.is_file():
            raise _unreachable(repository, error) from error
        commit = cached.read_text(errors="replace").strip()
    if not commit:
        raise DataError(f"the hub names no commit for the data set {repository!r}")
    return commit


def _unreachable(repository: str, error: Exception) -> DataError:
    reason = (str(error).strip().splitlines() or ["no message"])[0]
    return DataError(
        f"the data set {repository!r} cannot be had from the hub ({type(error).__name__}: "
        f"{reason}); without a network use --data mini, or --data DIR with a folder that "
        "`qbench data fetch DIR` made where there is one"
    )
