"""The latency of cells: measured when nothing else of the run computes, and shared between cells.

A product's time belongs to the weight's shape and format, the rows of x, the device and the code of
the kernels; a model's, to its layers, dtype and device. Each is measured once in a run's folder,
and kept in `latency/`, in a file named after all of that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from qbench import kernels
from qbench.checkpoint.folder import bytes_on_disk, is_checkpoint
from qbench.environment import hardware
from qbench.errors import ConfigError, StoreError, reason_of
from qbench.experiment.job import Job
from qbench.experiment.memory import Memory
from qbench.experiment.plugins import load_plugins
from qbench.experiment.store import Store
from qbench.files.atomic import write_text
from qbench.files.ordinary import json_of, ordinary_text
from qbench.isolation import Tell, log_traceback
from qbench.kernels.registry import GROUP, all_kernels
from qbench.latency import of_model
from qbench.latency.of_model import ROWS, Alike
from qbench.plugin_file import plugin_module
from qbench.quantization import load
from qbench.records import Cell, Decoding, Latency, Product
from qbench.registry import module_hash

ISA_VARIABLE = "QBENCH_ISA"  # by which the kernels of a processor take another path
COPIES = 2  # of a packed model that computes: the tensors, and a kernel's layout of them
SOURCES = (".py", ".c", ".h", ".cu", ".cuh", ".so", ".json")  # what decides a product's time
M = TypeVar("M", bound=BaseModel)


def measure(tell: Tell, job: Job) -> None:
    """Measure what a cell's packed model costs, in a process of its own; told as `latency`.

    Whatever is raised is the reason of what is missing. `progress` is told on the way.
    """
    os.chdir(job.place)
    measuring = _Measuring(tell, job)
    reason: str | None = None
    failed = False
    try:
        measuring.run()
    except BaseException as error:
        log_traceback()
        reason = reason_of(error)
        failed = not isinstance(error, (ConfigError, StoreError))
    tell({"latency": measuring.latency(reason, failed).model_dump(mode="json")})


def device_name(machine: dict[str, Any], device: str) -> str:
    """The processor's or the GPU's. machine: of `qbench.environment.hardware`."""
    return str(machine["cpu"] if device == "cpu" else machine["gpu"])


def not_measured(cell: Cell, machine: dict[str, Any], reason: str) -> Latency:
    """A latency of which there is nothing but the reason why its process has failed."""
    name = device_name(machine, cell.device)
    return Latency(device=name, threads=None, dtype=cell.dtype, reason=reason, failed=True)


def wanted(
    cell: Cell, latency: Latency | None, code: str, machine: dict[str, Any], artifact: Path
) -> bool:
    """Whether a finished cell has a packed model whose latency is not known in full.

    Nor is it where it was measured on this machine with other kernels, as long as the model is
    there. code: of `code_of`; older records do not say it. machine: of
    `qbench.environment.hardware`. artifact: the folder of the model.
    """
    if cell.scheme is None:
        return False
    if latency is None or latency.reason is not None:
        return True
    is_outdated = latency.code not in ("", code)
    is_here = latency.device == device_name(machine, cell.device)
    return is_outdated and is_here and is_checkpoint(artifact)


@dataclass
class _Measuring:
    """One cell's packed model on this device, and what of it is measured so far.

    layers: how many are quantized; None before the model is read.
    """

    tell: Tell
    job: Job
    layers: int | None = None
    products: list[Product] = field(default_factory=list)
    decoding: Decoding | None = None

    def run(self) -> None:
        """Measure all products, then the model; raises where one cannot be measured."""
        load_plugins(dict.fromkeys((*self.job.plugins, *self.job.kernels)))
        groups = self._groups()
        self.layers = sum(group.count for group in groups)
        for index, (group, rows) in enumerate(product(groups, ROWS)):
            share = index / (len(groups) * len(ROWS))
            self._say(f"timing {group.weight.shape} times {rows}", share / 2)
            self.products.append(self._product(group, rows))
        self.decoding = self._decoding(groups)

    def latency(self, reason: str | None, failed: bool) -> Latency:
        """What is measured so far, and why the rest is not; see `Latency`."""
        return Latency(
            device=device_name(hardware(), self.job.cell.device),
            threads=self._threads,
            dtype=self.job.cell.dtype,
            products=tuple(self.products),
            decoding=self.decoding,
            layers=self.layers,
            code=self._code,
            reason=reason,
            failed=failed,
        )

    def _groups(self) -> list[Alike]:
        if not self._folder.is_dir():
            raise StoreError(
                f"the quantized model {self._folder} is not there any more; remove the record "
                f"records/{self.job.cell.id}.json, and the cell is made again"
            )
        self._require_room()
        model = load(self._folder, self.job.cell.dtype, True, self.job.device).model
        return of_model.alike(model)

    def _require_room(self) -> None:
        room = Memory(self.job.memory, self.job.folder).room
        needed = COPIES * bytes_on_disk(self._folder)
        if needed > room:
            raise ConfigError(
                f"packed it takes {needed / 1e9:.3g} GB, and {room / 1e9:.3g} GB may be taken; "
                "give a larger --memory, or --no-latency"
            )

    @cached_property
    def _code(self) -> str:
        return code_of(self.job.kernels)

    @cached_property
    def _folder(self) -> Path:
        return self._store.artifact(self.job.cell)

    @cached_property
    def _store(self) -> Store:
        return Store(self.job.folder)

    @property
    def _threads(self) -> int | None:
        return torch.get_num_threads() if self.job.cell.device == "cpu" else None

    def _product(self, group: Alike, rows: int) -> Product:
        """The product with these layers, from the run's folder where it is known."""
        cell = self.job.cell

        def timed() -> Product:
            return of_model.time_product(group, rows, cell.dtype, self.job.device)

        shared = self._shared(Product, ["product", group.key, rows], timed)
        return shared.model_copy(update={"layers": group.count})

    def _decoding(self, groups: Sequence[Alike]) -> Decoding:
        """The model's rates, of any model of the run with the same layers."""
        cell = self.job.cell
        alike = sorted([group.key, group.count] for group in groups)

        def timed() -> Decoding:
            say = lambda text: self._say(text, 0.5)  # noqa: E731
            return of_model.time_model(self._folder, cell.dtype, self.job.device, say)

        return self._shared(Decoding, ["model", cell.model, cell.revision, alike], timed)

    def _shared(self, kind: type[M], facts: list[Any], timed: Callable[[], M]) -> M:
        """What an earlier cell has measured under the same facts; else measured and kept."""
        machine = [device_name(hardware(), self.job.cell.device), self._threads, torch.__version__]
        if ISA_VARIABLE in os.environ:
            machine.append(os.environ[ISA_VARIABLE])
        facts = [*facts, self.job.cell.dtype, *machine, self._code]
        path = self._store.latency(facts)
        known = _read(path, kind, facts)
        if known is not None:
            return known
        result = timed()
        body = {"facts": facts, "result": result.model_dump(mode="json")}
        write_text(path, json.dumps(body, indent=1) + "\n")
        return result

    def _say(self, text: str, fraction: float) -> None:
        self.tell({"progress": fraction, "text": text})


def _read(path: Path, kind: type[M], facts: list[Any]) -> M | None:
    """What is kept under these facts; None where there is none, or it is damaged."""
    try:
        body = json_of(ordinary_text(path, path.parent))
        if body["facts"] == json.loads(json.dumps(facts)):
            return kind.model_validate(body["result"])
    except (StoreError, ValueError, KeyError, TypeError, ValidationError):
        pass
    return None


def code_of(plugins: Iterable[Path]) -> str:
    """12 hex digits for the kernels, and for how they are timed.

    plugins: the files of a run that define kernels. Of these and of installed kernels all that
    their files import from beside them counts, too.
    """
    digest = hashlib.sha256()
    folders = [Path(kernels.__file__).parent, Path(of_model.__file__).parent]
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in SOURCES and path.is_file():
                digest.update(path.read_bytes())
    all_kernels()  # imports the installed ones
    installed = [point.module for point in entry_points(group=GROUP)]
    for module in sorted([*installed, *map(plugin_module, plugins)]):
        digest.update(module_hash(module).encode())
    return digest.hexdigest()[:12]
