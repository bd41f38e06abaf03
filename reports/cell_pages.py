"""A page for every cell: scores, changed items, latency, bits, training, command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from qbench.comparison.lint import lint
from qbench.comparison.pairs import Pairs, is_unquantized, pairs_of
from qbench.files.atomic import write_text
from qbench.outside_text import printable_lines
from qbench.records import Caution, Latency, Product, Record, Score, threads_in_words
from qbench.reports.cell_names import ordered
from qbench.reports.changed_items import MOST, Changes, changed_items
from qbench.reports.explanations import METRICS
from qbench.reports.headline import require, with_unit
from qbench.reports.layer_errors import heat_map
from qbench.reports.numbers import score_text
from qbench.reports.page import rendered
from qbench.reports.provenance import flat, label
from qbench.reports.ranking import cell_page, method_page

CURVE = (720, 160)  # width and height of a loss curve


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """`cells/ID.html` for every record."""
    require(records)
    pairs = pairs_of(records, folder)
    cautions = lint(records, pairs)
    bases = [record for record in records if is_unquantized(record)]
    paths = []
    for record in ordered(records):
        changes = changed_items(bases, record, pairs)
        scores = [_score(record, score, pairs) for score in record.scores]
        page = html(record, scores, changes, cautions.get(record.id, []))
        # There may be thousands, and all of them can be made again.
        paths.append(write_text(folder / cell_page(record.id), page, flush=False))
    return paths


def html(
    record: Record,
    scores: list[dict[str, Any]],
    changes: list[Changes],
    cautions: Sequence[Caution] = (),
) -> str:
    """The page of one cell. scores: as `_score` gives them. cautions: what may be wrong."""
    latency = record.latency
    return rendered(
        "cell.html",
        id=record.id,
        label=label(record),
        status=record.status,
        reason=record.reason or "no reason was recorded",
        method=record.cell.method,
        method_page=method_page(record.cell.method),
        facts=_facts(record),
        cautions=[(caution.task or "the cell", caution.text) for caution in cautions],
        scores=scores,
        base="unquantized" if record.cell.stored_as is None else "the model as stored",
        changes=changes,
        most_changes=MOST,
        products=[] if latency is None else [_product(product) for product in latency.products],
        latency_note="" if latency is None else _latency_note(latency),
        bits=[(part, f"{value:.4f}") for part, value in record.bits_per_weight.items()],
        heat=heat_map(record.log),
        blocks=_blocks(record.log),
        curves=_curves(record.log),
        environment=_environment(tuple(flat(record.environment).items())),
        command=record.command or "not recorded",
    )


@cache
def _environment(facts: tuple[tuple[str, str], ...]) -> Markup:
    """The same for most cells, and longer than the rest of their pages: written once."""
    if not facts:
        return Markup("<p>Not recorded.</p>")
    entry = Markup("<dt>{}</dt><dd>{}</dd>")
    entries = [entry.format(printable_lines(name), printable_lines(text)) for name, text in facts]
    return Markup("<dl>{}</dl>").format(Markup("").join(entries))


def _facts(record: Record) -> list[tuple[str, str]]:
    """What a cell is and what it cost, where that is known."""
    cell = record.cell
    facts = {
        "model": f"{cell.model}, {cell.revision}",
        "scheme": "as it comes" if cell.scheme is None else cell.scheme.written_out,
        "evaluated in": f"{cell.dtype} on {cell.device}, seed {cell.seed}",
    }
    if cell.calibration is not None:
        sample = cell.calibration
        facts["calibration"] = f"{sample.samples} windows of {sample.length} tokens, {sample.data}"
    if record.bytes_on_disk is not None:
        facts["on disk"] = f"{record.bytes_on_disk / 1e6:.1f} MB"
    if record.quantize_seconds is not None:
        facts["quantized in"] = f"{record.quantize_seconds:.1f} s"
    if record.quantize_peak_bytes is not None:
        facts["peak memory"] = f"{record.quantize_peak_bytes / 1e6:.0f} MB"
    if record.protocol:
        facts["protocol"] = f"{record.protocol.get('name')}, {record.protocol.get('hash')}"
    if record.evaluate_seconds is not None:
        facts["evaluated within"] = f"{record.evaluate_seconds:.1f} s"
    return list(facts.items())


def _score(record: Record, score: Score, pairs: Pairs) -> dict[str, Any]:
    contrast = pairs.from_unquantized(record, (score.task, score.metric, score.filter))
    name = with_unit(score.task, score.metric)
    if score.filter != "none":
        name += f" ({score.filter})"
    return {
        "task": score.task,
        "metric": name,
        "arrow": "↑" if score.higher_is_better else "↓",
        "text": score_text(score),
        "difference": "" if contrast is None else contrast.text,
        "suspicion": score.suspicion,
        "n": score.n,
        "explanation": METRICS.get(score.metric, ""),
    }


def _product(product: Product) -> dict[str, Any]:
    packed = product.seconds[0]
    dense = product.dense[0]
    return {
        "shape": f"{product.out} x {product.columns}",
        "layers": product.layers,
        "rows": product.rows,
        "packed": _microseconds(product.seconds),
        "dense": _microseconds(product.dense),
        "ratio": f"{dense / packed:.2f}" if packed else "",
        "kernel": product.kernel,
    }


def _microseconds(spread: tuple[float, float, float]) -> str:
    median, low, high = (1e6 * value for value in spread)
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def _latency_note(latency: Latency) -> str:
    threads = "" if latency.threads is None else f", {threads_in_words(latency.threads)}"
    note = (
        f"On {latency.device}{threads}; x and the dense product in {latency.dtype}; medians, with "
        "the tenth and ninetieth percentile; packed and dense in turns."
    )
    decoding = latency.decoding
    if decoding is not None:
        note += (
            f" The whole model writes {decoding.packed[0]:.1f} tokens per second, dense "
            f"{decoding.dense[0]:.1f}; it takes {decoding.packed_peak_bytes / 1e6:.0f} MB, dense "
            f"{decoding.dense_peak_bytes / 1e6:.0f}."
        )
    return f"{note} {latency.reason}." if latency.reason else note


def _trained(log: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The entries of blocks whose start and end are both known, by name."""
    blocks = {}
    for name, entry in log.items():
        if not isinstance(entry, Mapping):
            continue
        if _is_loss(entry.get("initial")) and _is_loss(entry.get("final")):
            blocks[name] = entry
    return blocks


def _is_loss(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _blocks(log: Mapping[str, Any]) -> list[dict[str, str]]:
    """The ratio of each block's losses, with a colour from blue (all gone) to white (no gain)."""
    blocks = []
    for name, entry in _trained(log).items():
        ratio = entry["final"] / entry["initial"]
        lightness = 62 + 32 * min(1.0, ratio)
        blocks.append(
            {
                "name": name,
                "ratio": f"{ratio:.2f}",
                "initial": f"{entry['initial']:.4g}",
                "final": f"{entry['final']:.4g}",
                "colour": f"hsl(210 70% {lightness:.0f}%)",
            }
        )
    return blocks


def _curves(log: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The losses of each block's steps as the points of a line."""
    curves = []
    for name, entry in _trained(log).items():
        losses = [loss for loss in entry.get("losses", []) if _is_loss(loss)]
        if len(losses) < 2:
            continue
        top = max(losses)
        width, height = CURVE
        points = []
        for step, loss in enumerate(losses):
            x = width * step / (len(losses) - 1)
            points.append(f"{x:.0f},{height * (1 - 0.95 * loss / top):.0f}")
        curves.append(
            {
                "name": name,
                "points": " ".join(points),
                "steps": len(losses),
                "first": f"{losses[0]:.4g}",
                "last": f"{losses[-1]:.4g}",
                "top": f"{top / 0.95:.3g}",
            }
        )
    return curves
