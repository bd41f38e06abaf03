"""The process of one cell: it quantizes and evaluates, and sends its results to the runner.

It gets a `Job`, and opens everything anew: plug-ins, data, tasks and the model. Cells share the
unquantized model's log-probabilities and the calibration tokens, in files that are mapped into
memory.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from qbench.calibration.windows import calibration_windows
from qbench.checkpoint.block_files import BlockFiles
from qbench.checkpoint.folder import bytes_on_disk
from qbench.contracts import Scheme
from qbench.environment import peak_memory, reset_peak_memory
from qbench.errors import StoreError, reason_of
from qbench.experiment.artifacts import check_artifact
from qbench.experiment.as_published import bits_as_it_is, published_dtype
from qbench.experiment.at_work import AtWork
from qbench.experiment.back_off import (
    WALK_BATCH,
    halved,
    is_out_of_memory,
    present_memory,
    walk_caution,
)
from qbench.experiment.coverage import coverage
from qbench.experiment.evaluation import evaluate
from qbench.experiment.foreign_cell import as_written, quantize_elsewhere
from qbench.experiment.job import Job
from qbench.experiment.memory import quantized_into
from qbench.experiment.shared_tokens import shared_tokens
from qbench.files.atomic import remove
from qbench.isolation import Tell, log_traceback
from qbench.models.provenance import provenance
from qbench.models.source import find_model, local_folder
from qbench.models.tokenizers import check_fit
from qbench.quantization import QuantizedModel, quantize, refuse_own_code
from qbench.registry import declared, drawn, get_method
from qbench.sensitivity import allocation_of, with_allocation
from qbench.tasks.data import CALIBRATION

if TYPE_CHECKING:
    from qbench.checks.watch import Clock


def work(tell: Tell, job: Job) -> None:
    """Do a job. Any error, of whatever type, becomes the reason of a failure.

    Each call of `tell` sends one event:

    - `progress` (0..1) and `text`;
    - `phase`: its name, when it `began` (seconds of the epoch) and its `seconds`;
    - `scores` of a task;
    - `note`: a sentence for people;
    - `waiting`: now and then, while another runner holds what is needed;
    - at the end, `facts` (the fields of the record that are known) and `tokens` (what calibrated).
      Where the cell failed, also `reason`, and `unwritable`, whether it is that results cannot be
      written. Where memory ran out, also `out_of_memory`, the phase, and `memory`, the bytes that
      were free and all that there are.
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
        at_work.open()
        at_work.do()
    except BaseException as error:  # an exit, too, and the panics of libraries in other languages
        log_traceback()
        outcome = {"reason": reason_of(error)}
        outcome["unwritable"] = at_work.is_saving and isinstance(error, (StoreError, OSError))
        if is_out_of_memory(error):
            outcome["unwritable"] = False  # it is no fault of the disk, and other cells may fit
            outcome |= {"out_of_memory": at_work.phase.doing, "memory": present_memory(job.device)}
    tell(outcome | {"facts": at_work.facts, "tokens": at_work.tokens})


class _Work(AtWork):
    """One cell at work, from its job to its scores."""

    def do(self) -> None:
        """Quantize and evaluate."""
        with self.memory.at_work():
            quantized = self._quantized()
            started = time.perf_counter()
            scores = evaluate(self, quantized.model, quantized.tokenizer)
        self.facts["scores"] = [score.model_dump(mode="json") for score in scores]
        self.facts["evaluate_seconds"] = time.perf_counter() - started
        self.require_same_model()

    def _quantized(self) -> QuantizedModel:
        """The model to evaluate, always as read back from disk; quantized first where need be."""
        cell = self.job.cell
        if cell.scheme is None:
            return self._as_it_is()
        folder = self.store.artifact(cell)
        with self.claimed(f"artifact-{cell.artifact}"):
            quantized = self._read_back(folder)
            if quantized is None:
                self._quantize(cell.scheme, folder)
                with self.phase("read back"):
                    quantized = self.read(find_model(str(folder)), cell.dtype, self.job.device)
        self._note_costs(quantized, folder)
        self._cover(quantized, folder)
        if "calibration" in quantized.manifest:
            self.tokens["calibration_tokens"] = quantized.manifest["calibration"]["sha256"]
        return quantized

    def _as_it_is(self) -> QuantizedModel:
        """The model of a cell that quantizes nothing."""
        cell = self.job.cell
        with self.phase("load"):
            model = self.read(self.job.model, cell.dtype, self.job.device)
        self.facts["bits_per_weight"] = bits_as_it_is(self.job.model, cell)
        self.facts["quantize_seconds"] = 0.0
        folder = local_folder(self.job.model)
        if folder is not None:
            self._cover(model, folder)
        return model

    def _note_costs(self, quantized: QuantizedModel, folder: Path) -> None:
        """Note the size of a quantized model and what it took to make it."""
        costs = quantized.manifest["costs"]
        written = quantized.manifest.get("written")  # another package's own files
        if written is None:
            self.facts["bits_per_weight"] = quantized.bits_per_weight
            self.facts["bytes_on_disk"] = bytes_on_disk(folder)
        else:
            self.facts["bits_per_weight"] = written["bits_per_weight"]
            self.facts["bytes_on_disk"] = written["bytes"]
            self.tokens["external"] = written
        if "walk_batch" in quantized.manifest:
            self.cautions.append(walk_caution(quantized.manifest["walk_batch"]))
        self.facts["quantize_seconds"] = costs["seconds"]
        self.facts["quantize_peak_bytes"] = costs["peak_bytes"]
        self.facts["quantize_watched"] = costs.get("watched") is True
        self.facts["log"] = quantized.log

    def _cover(self, quantized: QuantizedModel, folder: Path) -> None:
        """Note which layers of a quantized model are quantized."""
        if quantized.weights or self.job.cell.stored_as is not None:
            stored = published_dtype(self.job.model, self.job.cell)
            scheme = with_allocation(self.job.cell.scheme, quantized.manifest)
            head = quantized.manifest.get("head")
            facts = coverage(quantized.model, quantized.weights, folder, stored, scheme, head)
            self.facts["coverage"] = as_written(facts, quantized) | allocation_of(
                quantized.manifest
            )

    def _read_back(self, folder: Path) -> QuantizedModel | None:
        """The model that an earlier run has quantized; None where there is none, or it is damaged.

        A damaged one is removed, and a note says so.
        """
        if not os.path.lexists(folder):
            return None
        try:
            check_artifact(folder, self.job.cell)
            return self.read(find_model(str(folder)), self.job.cell.dtype, self.job.device)
        except StoreError as error:
            self.tell({"note": f"{reason_of(error)}; this model is quantized again"})
        remove(folder)
        return None

    def _quantize(self, scheme: Scheme, folder: Path) -> None:
        """Quantize the model and save the artifact."""
        cell = self.job.cell
        method, clock = self._method()
        dtype = "float32" if self.job.device == "cpu" else cell.dtype
        with self.phase("load"):
            original = self.read(self.job.model, dtype)
        tokens: Tensor | None = None
        if cell.calibration is not None:
            check_fit(original.model, original.tokenizer, f"model {cell.model!r}")
            with self.phase("calibration tokens"):
                tokens = self._calibration_tokens(original.tokenizer)
        if declared(cell.method).external:
            refuse_own_code(original.model)
            del original  # the other package loads the model itself
            self._quantize_elsewhere(method, scheme, tokens, folder)
        else:
            self._quantize_here(method, scheme, original, tokens, folder, clock)

    def _method(self) -> tuple[Any, Clock | None]:
        """The cell's method. One of a plug-in is watched, and comes with the clock of its watch."""
        cell = self.job.cell
        method = drawn(get_method(cell.method, **cell.params), cell.seed)
        declaration = declared(cell.method)
        # The methods of qbench are checked by its tests.
        if declaration.external or declaration.module.startswith("qbench.methods"):
            return method, None
        from qbench.checks.watch import Clock, watched  # takes long to import

        clock = Clock()
        return watched(method, clock), clock

    def _quantize_here(
        self,
        method: Any,
        scheme: Scheme,
        original: QuantizedModel,
        tokens: Tensor | None,
        folder: Path,
        clock: Clock | None,
    ) -> None:
        """Quantize in this process, and save the artifact with what it cost.

        original: the model, which is changed in place. tokens: (samples, length) int64.
        clock: see `_method`.
        """
        cell = self.job.cell
        walk_batch = halved(WALK_BATCH, self.job.halvings)
        reset_peak_memory(self.job.device)
        started = time.perf_counter()

        def quantized(files: BlockFiles | None) -> QuantizedModel:
            with self.phase("quantize"):
                made = quantize(
                    original.model,
                    method,
                    scheme,
                    tokens,
                    tokenizer=original.tokenizer,
                    device=self.job.device,
                    dtype=cell.calibration.dtype if cell.calibration else "float32",
                    batch_size=walk_batch,
                    progress=self.span(0.0, self.job.estimate.quantize_share, "quantizing"),
                    files=files,
                )
            seconds = time.perf_counter() - started
            costs = {"seconds": seconds, "peak_bytes": peak_memory(self.job.device)}
            if clock is not None:  # its memory cannot be told from the method's
                costs |= {"seconds": seconds - clock.seconds, "watched": True}
            made.manifest["costs"] = costs
            made.manifest |= self._origin
            if walk_batch != WALK_BATCH and cell.calibration and not declared(cell.method).trains:
                made.manifest["walk_batch"] = walk_batch
            return made

        quantized_into(folder, original.model, quantized, self.saving)

    def _quantize_elsewhere(
        self, method: Any, scheme: Scheme, tokens: Tensor | None, folder: Path
    ) -> None:
        """Have another package quantize the model, and save its result as the artifact."""
        share = self.job.estimate.quantize_share
        at_work = self.span(0.0, share, f"in the environment of {method.package.name}")
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
        with self.saving():
            quantized.save(folder)

    @property
    def _origin(self) -> dict[str, Any]:
        """What the manifest of the artifact says of the model that was quantized."""
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
            self.require_same_data(CALIBRATION, self.source.sha256(CALIBRATION), sample.sha256)
            seed = self.job.cell.seed
            return calibration_windows(texts, tokenizer, sample.samples, sample.length, seed)

        with self.claimed(path.stem):
            return shared_tokens(path, draw)
