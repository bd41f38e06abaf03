"""The process that a cell has to itself: it quantizes and evaluates, and tells what comes out.

It is told what to do by a `Job` and opens everything anew: plug-ins, data, tasks and the model.
What cells share lies in files that are mapped into memory: the unquantized model's
log-probabilities and the calibration tokens.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from qbench.calibration.walk import Progress
from qbench.calibration.windows import calibration_windows
from qbench.checkpoint.block_files import BlockFiles
from qbench.checkpoint.folder import bytes_on_disk
from qbench.comparison.cell_lint import Evaluated, lint_cell
from qbench.contracts import Scheme
from qbench.environment import peak_memory, reset_peak_memory
from qbench.errors import StoreError, reason_of
from qbench.experiment.artifacts import check_artifact, remove
from qbench.experiment.as_published import bits_as_it_is, published_dtype
from qbench.experiment.back_off import WALK_BATCH, halved, is_out_of_memory, present_memory
from qbench.experiment.coverage import coverage
from qbench.experiment.foreign_cell import as_written, quantize_elsewhere
from qbench.experiment.job import Job
from qbench.experiment.memory import Memory, quantized_into
from qbench.experiment.phases import Phases
from qbench.experiment.plugins import load_plugins
from qbench.experiment.shared_tokens import shared_tokens
from qbench.experiment.store import Store
from qbench.files.claims import claimed_in_time
from qbench.isolation import Tell
from qbench.models.identity import require_unchanged
from qbench.models.paging import is_paged, on_device
from qbench.models.provenance import provenance
from qbench.models.source import ModelSource, find_model, local_folder
from qbench.models.tokenizers import check_fit
from qbench.quantization import QuantizedModel, quantize
from qbench.records import Score, TaskSpec
from qbench.registry import declared, drawn, get_method, parameters
from qbench.sensitivity import allocation_of, with_allocation
from qbench.tasks.contract import Context, Task, Unquantized
from qbench.tasks.data import CALIBRATION, Source, open_source
from qbench.tasks.registry import get_task

PROGRESS_SECONDS = 0.1  # between two events that only say how far the work is


def work(tell: Tell, job: Job) -> None:
    """Do a job. Whatever is raised, of any type, is told as the reason of a failure.

    Events: `progress` and `text`; `phase`, when it `began` (seconds of the epoch) and its
    `seconds`; `scores` of a task; `note`, a sentence for people; `waiting`, now and then while
    another runner holds what is needed; in the end `facts`, the fields of the record that are
    known, with `tokens`, which say what calibrated; and with `reason` where the cell
    failed, and `unwritable` where the reason is that results cannot be written; where memory ran
    out, `out_of_memory`, the phase in which, and `memory`, what was free and all.
    """
    if job.gpu is not None:  # before CUDA starts in this process
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpu
    os.chdir(job.place)
    with suppress(OSError):  # where memory runs out, this process is to go, and not the runner
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(job.threads)
    threadpool_limits(job.threads)  # of numpy, which has its own
    at_work = _Work(tell, job)
    outcome: dict[str, Any] = {}
    try:
        at_work.do()
    except BaseException as error:  # an exit, too, and the panics of libraries in other languages
        traceback.print_exc()
        unwritable = at_work.saving and isinstance(error, (StoreError, OSError))
        outcome = {"reason": reason_of(error), "unwritable": unwritable}
        if is_out_of_memory(error):
            outcome |= {"out_of_memory": at_work.phase.doing, "memory": present_memory(job.device)}
    tell(outcome | {"facts": at_work.facts, "tokens": at_work.tokens})


@dataclass
class _Work:
    """One cell at work.

    facts: fields of its record, as they become known. tokens: which tokens calibrated. saving:
    whether results are being written. paged: whether a model was read block by block.
    """

    tell: Tell
    job: Job
    facts: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
    saving: bool = False
    paged: bool = False
    told: float = 0.0

    def __post_init__(self) -> None:
        self.phase = Phases(self.tell)

    def do(self) -> None:
        """Quantize and evaluate."""
        load_plugins(self.job.plugins)
        self.store = Store(self.job.folder)
        method = get_method(self.job.cell.method, **self.job.cell.params)
        self.facts["parameters"] = parameters(method)
        self.source: Source = open_source(self.job.data)
        self.tasks = {name: get_task(typed) for name, typed in self.job.task_names.items()}
        self.memory = Memory(self.job.memory, self.job.folder)
        with self.memory.at_work():
            self._work()

    def _work(self) -> None:
        quantized = self._quantized()
        started = time.perf_counter()
        scores = self._evaluate(quantized.model, quantized.tokenizer)
        self.facts["scores"] = [score.model_dump(mode="json") for score in scores]
        self.facts["evaluate_seconds"] = time.perf_counter() - started
        require_unchanged(self.job.model, self.job.cell.revision)

    def _quantized(self) -> QuantizedModel:
        """The model to evaluate, always as read back from disk; quantized first where need be."""
        cell = self.job.cell
        if cell.scheme is None:
            with self.phase("load"):
                model = self._read(self.job.model, cell.dtype, self.job.device)
            self.facts["bits_per_weight"] = bits_as_it_is(self.job.model, cell)
            self.facts["quantize_seconds"] = 0.0
            own = local_folder(self.job.model)
            if own is not None:
                self._cover(model, own)
            return model
        folder = self.store.artifact(cell)
        with self._claimed(f"artifact-{cell.artifact}"):
            quantized = self._read_back(folder)
            if quantized is None:
                self._quantize(cell.scheme, folder)
                with self.phase("read back"):
                    quantized = self._read(find_model(str(folder)), cell.dtype, self.job.device)
        costs = quantized.manifest["costs"]
        written = quantized.manifest.get("written")  # another package's own files
        if written is None:
            self.facts["bits_per_weight"] = quantized.bits_per_weight
            self.facts["bytes_on_disk"] = bytes_on_disk(folder)
        else:
            self.facts["bits_per_weight"] = written["bits_per_weight"]
            self.facts["bytes_on_disk"] = written["bytes"]
            self.tokens["external"] = written
        self.facts["quantize_seconds"] = costs["seconds"]
        self.facts["quantize_peak_bytes"] = costs["peak_bytes"]
        self.facts["log"] = quantized.log
        self._cover(quantized, folder)
        if "calibration" in quantized.manifest:
            self.tokens["calibration_tokens"] = quantized.manifest["calibration"]["sha256"]
        return quantized

    def _read(self, source: ModelSource, dtype: str, device: str = "cpu") -> QuantizedModel:
        """A model, paged where it is too large, which is said once."""
        model = self.memory.read(source, dtype, device)
        if is_paged(model.model) and not self.paged:
            self.paged = True
            self.tell({"note": f"{self.job.cell.model} does not fit, and is read block by block"})
        return model

    def _cover(self, quantized: QuantizedModel, folder: Path) -> None:
        """Note which layers of a model that is said to be quantized are."""
        if quantized.weights or self.job.cell.stored_as is not None:
            stored = published_dtype(self.job.model, self.job.cell)
            scheme = with_allocation(self.job.cell.scheme, quantized.manifest)
            facts = coverage(quantized.model, quantized.weights, folder, stored, scheme)
            self.facts["coverage"] = as_written(facts, quantized) | allocation_of(
                quantized.manifest
            )

    def _read_back(self, folder: Path) -> QuantizedModel | None:
        """The model that an earlier run has quantized; None where there is none, or it is damaged.

        A damaged one is said and removed.
        """
        if not os.path.lexists(folder):
            return None
        try:
            check_artifact(folder, self.job.cell)
            return self._read(find_model(str(folder)), self.job.cell.dtype, self.job.device)
        except StoreError as error:
            self.tell({"note": f"{reason_of(error)}; this model is quantized again"})
        remove(folder)
        return None

    def _quantize(self, scheme: Scheme, folder: Path) -> None:
        """Quantize the model and save the artifact."""
        cell = self.job.cell
        device = self.job.device
        method = drawn(get_method(cell.method, **cell.params), cell.seed)
        declaration = declared(cell.method)
        if not (declaration.external or declaration.module.startswith("qbench.methods")):
            from qbench.checks.watch import watched  # takes long to import

            method = watched(method)  # our own are checked by the tests
        dtype = "float32" if device == "cpu" else cell.dtype
        with self.phase("load"):
            original = self._read(self.job.model, dtype)
        model, tokenizer = original.model, original.tokenizer
        tokens: Tensor | None = None
        if cell.calibration is not None:
            check_fit(model, tokenizer, f"model {cell.model!r}")
            with self.phase("calibration tokens"):
                tokens = self._calibration_tokens(tokenizer)
        if declaration.external:
            del original, model
            self._quantize_elsewhere(method, scheme, tokens, folder)
            return
        reset_peak_memory(device)
        started = time.perf_counter()

        def quantized(files: BlockFiles | None) -> QuantizedModel:
            with self.phase("quantize"):
                made = quantize(
                    model,
                    method,
                    scheme,
                    tokens,
                    tokenizer=tokenizer,
                    device=device,
                    dtype=cell.calibration.dtype if cell.calibration else "float32",
                    batch_size=halved(WALK_BATCH, self.job.halvings),
                    progress=self._span(0.0, self.job.estimate.quantize_share, "quantizing"),
                    files=files,
                )
            seconds = time.perf_counter() - started
            made.manifest["costs"] = {"seconds": seconds, "peak_bytes": peak_memory(device)}
            made.manifest |= self._origin
            return made

        quantized_into(folder, model, quantized, self._saving)

    def _quantize_elsewhere(
        self, method: Any, scheme: Scheme, tokens: Tensor | None, folder: Path
    ) -> None:
        """Let another package quantize the model, and save what it wrote as the artifact."""
        share = self.job.estimate.quantize_share
        at_work = self._span(0.0, share, f"in the environment of {method.package.name}")
        with self.phase("quantize"):
            quantized = quantize_elsewhere(
                method,
                self.job.cell.method,
                scheme,
                self.job.model,
                tokens,
                self.job.folder,
                device=self.job.device,
                threads=self.job.threads,
                waiting=lambda: at_work(0.5, ""),
            )
        quantized.manifest |= self._origin
        with self._saving():
            quantized.save(folder)

    @property
    def _origin(self) -> dict[str, Any]:
        """What the manifest of this cell's artifact says of the model that it was made of."""
        cell = self.job.cell
        origin = {"artifact": cell.artifact} | provenance(self.job.model)
        if not Path(cell.model).is_dir():
            origin["model"] = cell.model
        return origin

    def _calibration_tokens(self, tokenizer: Any) -> Tensor:
        """(samples, length) int64, mapped from the file that cells share; made where it is not."""
        sample = self.job.cell.calibration
        assert sample is not None
        path = self.store.calibration(self.job.cell)

        def draw() -> Tensor:
            texts = self.source.text(CALIBRATION)
            seed = self.job.cell.seed
            return calibration_windows(texts, tokenizer, sample.samples, sample.length, seed)

        with self._claimed(path.stem):
            return shared_tokens(path, draw)

    def _evaluate(self, model: Any, tokenizer: Any) -> tuple[Score, ...]:
        """Scores of every task; the samples are written on the way.

        What tasks need of the unquantized model they prepare first, so that tasks that share a pass
        over the model under test find it, whichever of them is evaluated first.
        """
        cell = self.job.cell
        check_fit(model, tokenizer, f"model {cell.model!r}")
        on_device(model, self.job.device)
        torch.manual_seed(cell.seed)
        context = Context(model, tokenizer, self.source)
        context.unquantized = Unquantized(
            load=partial(self._unquantized, model, tokenizer),
            file=partial(self.store.reference, cell),
        )
        preparing = [spec for spec in cell.tasks if self.tasks[spec.name].needs_unquantized]
        spans = self._spans([*preparing, *cell.tasks])
        for spec in preparing:
            with self.phase(f"prepare {spec.name}"):
                self._prepare(self._for_task(context, self.tasks[spec.name], next(spans)), spec)
        scores: list[Score] = []
        rows: dict[str, Sequence[Mapping[str, Any]]] = {}
        for spec in cell.tasks:
            task = self.tasks[spec.name]
            started = time.perf_counter()
            with self.phase(spec.name):
                outcome = task.evaluate(self._for_task(context, task, next(spans)), spec)
            seconds = time.perf_counter() - started
            told = self.facts.setdefault("evaluation", {})
            told[spec.name] = {"seconds": seconds, **outcome.facts}
            with self._saving():
                path, digest = self.store.write_samples(cell, spec.name, outcome.samples)
            told[spec.name]["samples_sha256"] = digest
            if cell.calibration is not None and task.name in self.job.overlaps:
                told[spec.name]["overlap"] = self.job.overlaps[task.name]
            rows[spec.name] = outcome.samples
            scores += [score.model_copy(update={"samples": path}) for score in outcome.scores]
            self.tell({"scores": [score.model_dump(mode="json") for score in outcome.scores]})
        self._lint(rows)
        return tuple(scores)

    def _lint(self, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Put what may be wrong with the evaluation among the facts."""
        told = self.facts.get("evaluation", {})
        evaluated = Evaluated(self.job.cell, told, rows, self.facts.get("coverage", {}))
        cautions = lint_cell(evaluated)
        self.facts["warnings"] = [caution.model_dump(mode="json") for caution in cautions]

    def _prepare(self, context: Context, spec: TaskSpec) -> None:
        """Have what a task needs of the unquantized model; again where its file is damaged."""
        task = self.tasks[spec.name]
        path = self.store.reference(self.job.cell, spec)
        with self._claimed(f"reference-{path.stem}"):
            present = path.exists()
            try:
                task.prepare(context, spec)
            except StoreError as error:
                if not present:
                    raise
                self.tell({"note": f"{reason_of(error)}; it is made again"})
                remove(path)
                task.prepare(context, spec)

    def _for_task(self, context: Context, task: Task, progress: Progress) -> Context:
        """The cell's context with a task's own batch size and progress; the cache is shared."""
        batch_size = halved(task.batch_size or self.job.batch_size, self.job.halvings)
        return replace(context, batch_size=batch_size, progress=progress)

    def _unquantized(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """The model before quantization: the one under test where it is not quantized."""
        if self.job.cell.method == "none":
            return model, tokenizer
        original = self._read(self.job.model, self.job.cell.dtype, self.job.device)
        return on_device(original.model, self.job.device), original.tokenizer

    def _spans(self, specs: Sequence[TaskSpec]) -> Iterator[Progress]:
        """What follows quantizing of the cell's progress, divided by the specs' estimated times."""
        estimated = self.job.estimate
        total = sum(estimated.tasks[spec.name] for spec in specs)
        low = estimated.quantize_share
        for spec in specs:
            share = estimated.tasks[spec.name]
            high = low + (1 - estimated.quantize_share) * share / total
            yield self._span(low, high, spec.name)
            low = high

    def _span(self, low: float, high: float, name: str) -> Progress:
        """A callback for a part of the work, whose fraction 0..1 is `low`..`high` of the cell's."""

        def report(fraction: float, text: str) -> None:
            now = time.monotonic()
            if now - self.told >= PROGRESS_SECONDS:
                self.told = now
                self.tell({"progress": low + (high - low) * fraction, "text": text or name})

        return report

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Where an error means that results can no longer be written."""
        self.saving = True
        with self.phase("save"):
            yield
        self.saving = False

    @contextmanager
    def _claimed(self, name: str) -> Iterator[None]:
        """Keep other runners from what has this name; waiting for them is told."""
        with claimed_in_time(self.store.claim(name), lambda: self.tell({"waiting": name})):
            yield
