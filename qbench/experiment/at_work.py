"""What quantizing and evaluating share in the process of a cell: what it reads and may store.

Whatever is read is compared with the hashes in the cell's id. Otherwise a file that changes between
the plan and the cell would lead to a record under a wrong id.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from qbench.calibration.walk import Progress
from qbench.errors import DataError, MethodError
from qbench.experiment.job import Job
from qbench.experiment.memory import Memory
from qbench.experiment.phases import Phases
from qbench.experiment.plugins import load_plugins
from qbench.experiment.store import Store
from qbench.experiment.task_identity import task_hash
from qbench.files.claims import claimed_in_time
from qbench.isolation import Tell
from qbench.models.identity import AGAIN, require_unchanged
from qbench.models.paging import is_paged
from qbench.models.source import ModelSource
from qbench.quantization import QuantizedModel
from qbench.records import Caution, TaskSpec
from qbench.registry import get_method, method_class, parameters, source_hash
from qbench.tasks.contract import Task
from qbench.tasks.data import Source, open_source
from qbench.tasks.harness import HarnessTask
from qbench.tasks.registry import get_task
from qbench.tasks.text import TextTask

PROGRESS_SECONDS = 0.1  # between two events that only say how far the work is


@dataclass
class AtWork:
    """A cell's job, what it has opened, and what it tells.

    facts: fields of its record, as they become known. tokens: which tokens calibrated. is_saving:
    whether results are being written. paged: whether a model was read block by block. cautions:
    what is known to be unusual about the model before it is judged. told: when progress was told
    last, in seconds.
    """

    tell: Tell
    job: Job
    facts: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
    is_saving: bool = False
    paged: bool = False
    cautions: list[Caution] = field(default_factory=list)
    told: float = 0.0

    def __post_init__(self) -> None:
        self.phase = Phases(self.tell)

    def open(self) -> None:
        """Open everything anew: plug-ins, the run's folder, data and tasks.

        MethodError where the method's files are not those of the plan, and DataError where a task
        is another one.
        """
        cell = self.job.cell
        load_plugins(self.job.plugins)
        if source_hash(method_class(cell.method)) != cell.source:
            raise MethodError(f"the files of method {cell.method!r} have changed {AGAIN}")
        self.store = Store(self.job.folder)
        self.facts["parameters"] = parameters(get_method(cell.method, **cell.params))
        self.source: Source = open_source(self.job.data)
        self.tasks: dict[str, Task] = {
            name: get_task(typed) for name, typed in self.job.task_names.items()
        }
        for name, task in self.tasks.items():
            if task_hash(task) != self.job.declared[name]:
                raise DataError(f"the files of task {task.name!r} have changed {AGAIN}")
        self.memory = Memory(self.job.memory, self.job.folder)

    def require_same_model(self) -> None:
        """ModelError where the model's files are not those of the plan."""
        require_unchanged(self.job.model, self.job.cell.revision)

    def require_same_data(self, name: str, present: str, planned: str) -> None:
        """DataError where data that were read are not those of the plan, by their hashes."""
        if present != planned:
            raise DataError(f"the data of {name} in {self.job.data} have changed {AGAIN}")

    def require_same_items(self, spec: TaskSpec) -> None:
        """DataError where a task has read other data than those of the plan.

        Of a task of another package its code alone is checked: what its hash is made of is not
        known.
        """
        task = self.tasks[spec.name]
        if isinstance(task, (HarnessTask, TextTask)):
            self.require_same_data(spec.name, task.spec(self.source).sha256, spec.sha256)

    def read(self, source: ModelSource, dtype: str, device: str = "cpu") -> QuantizedModel:
        """A model, paged where it is too large; the first time, a note says so."""
        model = self.memory.read(source, dtype, device)
        if is_paged(model.model) and not self.paged:
            self.paged = True
            self.tell({"note": f"{self.job.cell.model} does not fit, and is read block by block"})
        return model

    def span(self, low: float, high: float, name: str) -> Progress:
        """A callback that tells progress: its fraction 0..1 is `low`..`high` of the whole cell."""

        def report(fraction: float, text: str) -> None:
            now = time.monotonic()
            if now - self.told >= PROGRESS_SECONDS:
                self.told = now
                self.tell({"progress": low + (high - low) * fraction, "text": text or name})

        return report

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A context that writes results: an error in it means that they cannot be written.

        ModelError where the model's files are not those of the plan.
        """
        self.require_same_model()
        self.is_saving = True
        with self.phase("save"):
            yield
        self.is_saving = False

    @contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """A context in which no other runner makes what has this name; it may have to wait."""
        with claimed_in_time(self.store.claim(name), lambda: self.tell({"waiting": name})):
            yield
