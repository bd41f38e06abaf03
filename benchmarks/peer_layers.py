"""Our gptq and awq against gptqmodel's and llm-compressor's, layer by layer on the same numbers.

    python benchmarks/peer_layers.py [--data mini] [--json FILE]

The layers are q_proj and down_proj of three blocks of SmolLM2-135M with their inputs on 8 x 512
tokens, all in float32. The packages run in their own environments (`qbench env create`), by
`peer_layers_gptqmodel.py` and `peer_layers_llm_compressor.py`.

GPTQ. Both have the same weights and the same Hessian, zero points, min-max grids and the damping
that the package has by default. gptqmodel finds its own grids and is compared with ours as it is;
then as the same algorithm (our groups by their largest curvature as its are, where ours go by their
mean; its blocks as long as a group, as it finds grids in weights that lag behind within a block);
then with the same numbers, our scales in float32 like its own. llm-compressor is handed our grids.

AWQ. Both search the scales of a model of one block whose inputs are the real ones: llm-compressor
with the ratios of ours and without its weights in the scale, and then by its defaults.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qbench.calibration.input_statistics import Sums
from qbench.calibration.walk import walk_blocks
from qbench.calibration.windows import calibration_windows
from qbench.contracts import BlockInputs, LinearStats, Scheme
from qbench.environment import environment
from qbench.external.environments import clean_variables, python_of, state
from qbench.external.packages import get_package
from qbench.files.atomic import write_text
from qbench.formats.stepped import values
from qbench.methods.gptq import GPTQ, OnGrid
from qbench.methods.grids import SnappedGrid, stored_zero
from qbench.methods.rtn import RTN
from qbench.models.blocks import read_weight
from qbench.models.loading import load_model
from qbench.models.source import find_model
from qbench.registry import get_method
from qbench.tasks.data import CALIBRATION, open_source

HERE = Path(__file__).parent
BLOCKS = (0, 15, 29)
LAYERS = ("self_attn.q_proj", "mlp.down_proj")
BITS = (4, 3)
GROUPS = (64, 128)  # where they divide the inputs
AWQ_GROUP = 64
SAMPLES, LENGTH = 8, 512
DAMP = {"gptqmodel": 0.05, "llm-compressor": 0.01}  # their defaults
THEIR_BLOCK = 128
RATIOS = 20  # steps of our search of a scale
# By package the settings that are compared: its own, and what ours are called.
SETTINGS: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "gptqmodel": {
        "natural order": (
            {"desc_act": False, "act_group_aware": False},
            {"groups": "dynamic", "act_order": False},
        ),
        "static groups, act-order": (
            {"desc_act": True, "act_group_aware": False, "static_groups": True},
            {"groups": "static", "act_order": True},
        ),
        "group aware": (
            {"desc_act": False, "act_group_aware": True},
            {"groups": "dynamic", "act_order": True},
        ),
    },
    "llm-compressor": {
        "natural order": ({"actorder": None}, {"groups": "static", "act_order": False}),
        "act-order": ({"actorder": "weight"}, {"groups": "static", "act_order": True}),
    },
}


class Rounded(NamedTuple):
    """A rounded weight (out, in): its codes, the zero point of each, and what they mean."""

    codes: Tensor
    zero: Tensor
    dequantized: Tensor


@dataclass(frozen=True)
class Unrounded(RTN):
    """The grids of `rtn` with scales in float32."""

    def snapped_grid(
        self, W: Tensor, scheme: Scheme, importance: Tensor | None = None
    ) -> SnappedGrid:
        """Like that of `rtn`, before scales are stored."""
        s, z = self.real_grid(W, scheme, importance)
        return s, stored_zero(z, integer=True)


@dataclass(frozen=True)
class Likened(GPTQ):
    """Our gptq with gptqmodel's order of groups. exact: scales stay in float32."""

    exact: bool = False

    @property
    def _grids(self) -> RTN:
        return Unrounded("none") if self.exact else super()._grids

    def _ways(self, W: Tensor, H: Tensor, scheme: Scheme) -> Iterator[OnGrid]:
        if self.groups == "static":
            yield from super()._ways(W, H, scheme)
            return
        group = scheme.group_length(len(H))
        order = order_of(H.diagonal(), group, self.groups, self.act_order)
        yield self._dynamic(W, H, order, group, scheme)


def order_of(diagonal: Tensor, group: int, groups: str, act_order: bool) -> Tensor:
    """(in,) int64: gptqmodel's order; of dynamic groups by the largest of diagonal (in,)."""
    if not act_order:
        return torch.arange(len(diagonal))
    if groups == "static":
        return diagonal.argsort(descending=True, stable=True)
    inner = diagonal.view(-1, group).argsort(dim=1, descending=True, stable=True)
    outer = diagonal.view(-1, group).amax(1).argsort(descending=True, stable=True)
    columns = torch.arange(len(diagonal)).view(-1, group)
    return columns.gather(1, inner)[outer].flatten()


def agreement(
    mine: Rounded, places: Tensor, theirs: Rounded, order: Tensor, weight: Tensor, hessian: Tensor
) -> dict[str, float | None]:
    """How far two roundings of a weight (out, in) agree.

    places (out, in): where our values lie on our grid, w / s + z. order: in which columns were
    rounded. codes, rows: the shares that are equal, and equal whole. Of the rows that differ,
    zero_points: the share whose first difference is in a zero point; tie: of the others, how far at
    most the first code that differs is from the border of theirs, in steps; None without any. loss:
    tr((W-Q) H (W-Q)^T), theirs by ours.
    """
    rows, columns = first_differences(mine.codes, theirs.codes, order)
    regridded = mine.zero[rows, columns] != theirs.zero[rows, columns]
    rows, columns = rows[~regridded], columns[~regridded]
    ties = (places[rows, columns] - theirs.codes[rows, columns].float()).abs() - 0.5
    equal = mine.codes == theirs.codes
    losses = [error(weight - side.dequantized, hessian) for side in (theirs, mine)]
    return {
        "codes": equal.float().mean().item(),
        "rows": equal.all(1).float().mean().item(),
        "tie": ties.max().item() if len(ties) else None,
        "zero_points": regridded.float().mean().item() if len(regridded) else 0.0,
        "loss": losses[0] / losses[1],
    }


def first_differences(codes: Tensor, others: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of codes (out, in) that differ, and in each the column that is first in `order`."""
    differ = (codes != others)[:, order]
    rows = differ.any(1).nonzero()[:, 0]
    return rows, order[differ[rows].int().argmax(1)]


def error(change: Tensor, hessian: Tensor) -> float:
    """tr(change H change^T), change (out, in)."""
    return ((change.double() @ hessian.double()) * change).sum().item()


def laid_out(result: OnGrid, group: int) -> tuple[Rounded, Tensor]:
    """Ours, and where its values lie on the grid; see `agreement`."""
    assert result.zero is not None
    scale = values(result.scale).float().repeat_interleave(group, 1)
    zero = values(result.zero).float().repeat_interleave(group, 1)
    dequantized = scale * (result.codes.float() - zero)
    return Rounded(result.codes, zero, dequantized), result.values / scale + zero


def capture(data: str, folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Parts of the layers, and the searches of AWQ, on models in `folder`, with what ours logs.

    LAYER.weight (out, in), LAYER.hessian (in, in), LAYER.inputs (tokens, in), float32.
    """
    model, tokenizer = load_model(find_model("smollm2-135m"), "float32")
    text = open_source(data).text(CALIBRATION)
    tokens = calibration_windows(text, tokenizer, SAMPLES, LENGTH, seed=0)
    parts: dict[str, Tensor] = {}
    searches = []
    awq = get_method("awq", grid=RATIOS, clip="none", scale_tokens=SAMPLES * LENGTH)

    def visit(name: str, block: nn.Module, inputs: BlockInputs, targets: list[Tensor]) -> None:
        index = int(name.rpartition(".")[2])
        if index not in BLOCKS:
            return
        for layer in LAYERS:
            x = inputs_of(block, layer, inputs)
            sums = Sums(x)
            sums.add(x)
            parts[f"{index}.{layer}.weight"] = read_weight(block.get_submodule(layer)).clone()
            parts[f"{index}.{layer}.hessian"] = sums.statistics(layer).hessian
            parts[f"{index}.{layer}.inputs"] = x
        place = str(folder / f"block{index}")
        alone(model, block, inputs).save_pretrained(place)
        tokenizer.save_pretrained(place)
        for bits in BITS:
            log = awq.quantize_block(block, inputs, targets, Scheme(bits, AWQ_GROUP)).log
            search = {"block": index, "bits": bits, "model": place, "ours": log}
            searches.append(search | {"length": LENGTH, "group_size": AWQ_GROUP})

    walk_blocks(model, tokens, visit, torch.device("cpu"), lambda *done: None, 1, torch.float32)
    return parts, searches


def inputs_of(block: nn.Module, name: str, inputs: BlockInputs) -> Tensor:
    """(tokens, in): what a layer is called with in full precision."""
    rows: list[Tensor] = []
    layer = block.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, args: rows.append(args[0].flatten(0, 1)))
    for batch, hidden in enumerate(inputs.full):
        inputs.run(block, hidden, batch)
    handle.remove()
    return torch.cat(rows)


def alone(model: Any, block: nn.Module, inputs: BlockInputs) -> Any:
    """A model of one block: its tokens 0, 1, .. are embedded as the block's inputs in a row."""
    hidden = torch.cat([x.flatten(0, 1) for x in inputs.full])
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 1
    config.vocab_size = len(hidden)
    single = type(model)(config)
    single.model.layers[0].load_state_dict(block.state_dict())
    single.get_input_embeddings().weight.data.copy_(hidden)
    return single


def jobs_of(package: str, parts: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Every layer under every setting, as ours and as the package calls it."""
    jobs = []
    for key, weight in parts.items():
        name, _, part = key.rpartition(".")
        groups = [group for group in GROUPS if part == "weight" and not weight.shape[1] % group]
        for bits, group, setting in itertools.product(BITS, groups, SETTINGS[package]):
            theirs, ours = SETTINGS[package][setting]
            job = {"package": package, "layer": name, "bits": bits, "group_size": group}
            job |= {"setting": setting, "settings": theirs, "damp": DAMP[package]}
            options = {"damp": DAMP[package], "clip": "none", "importance": "none"}
            jobs.append(job | {"ours": ours | options})
    return jobs


def run(package: str, jobs: list[dict[str, Any]], folder: Path) -> list[Rounded]:
    """What a package makes of all jobs."""
    write_text(folder / "jobs.json", json.dumps(jobs))
    script = str(HERE / f"peer_layers_{package.replace('-', '_')}.py")
    variables = clean_variables() | {"HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)}
    command = [str(python_of(get_package(package))), "-P", "-s", script, str(folder)]
    subprocess.run(command, check=True, env=variables, stdout=subprocess.DEVNULL)
    tensors = load_file(folder / f"{package}.safetensors")
    names = Rounded._fields
    return [Rounded(*(tensors[f"{i}.{name}"] for name in names)) for i in range(len(jobs))]


def ours(method: GPTQ, job: dict[str, Any], parts: dict[str, Tensor]) -> OnGrid:
    """What ours makes of a job."""
    stats = LinearStats(parts[f"{job['layer']}.hessian"], SAMPLES * LENGTH)
    scheme = Scheme(job["bits"], job["group_size"])
    return method.rounded(parts[f"{job['layer']}.weight"], stats, scheme)


def compared(
    comparison: str, method: GPTQ, job: dict[str, Any], theirs: Rounded, parts: dict[str, Tensor]
) -> dict[str, Any]:
    """A row of the results."""
    weight, hessian = (parts[f"{job['layer']}.{part}"] for part in ("weight", "hessian"))
    group = job["group_size"]
    order = order_of(hessian.diagonal(), group, method.groups, method.act_order)
    mine = laid_out(ours(method, job, parts), group)
    row = {key: job[key] for key in ("package", "setting", "layer", "bits", "group_size")}
    agreed = agreement(*mine, theirs, order, weight, hessian)
    return row | {"comparison": comparison} | agreed


def against_gptqmodel(parts: dict[str, Tensor], folder: Path) -> list[dict[str, Any]]:
    """Three rows for each layer and setting."""
    save_file(parts, folder / "layers.safetensors")
    jobs = jobs_of("gptqmodel", parts)
    asked = []
    for job in jobs:
        asked += [job | {"block_size": size} for size in (THEIR_BLOCK, job["group_size"])]
    theirs = run("gptqmodel", asked, folder)
    rows = []
    for job, with_theirs, with_fresh in zip(jobs, theirs[::2], theirs[1::2], strict=True):
        options = job["ours"]
        rows.append(compared("as it is", get_method("gptq", **options), job, with_theirs, parts))
        if options["groups"] == "dynamic":  # static ones are the same algorithm as they are
            rows.append(compared("same algorithm", Likened(**options), job, with_fresh, parts))
        exact = Likened(**options, exact=True)
        rows.append(compared("same numbers", exact, job, with_fresh, parts))
    return rows


def against_llm_compressor(parts: dict[str, Tensor], folder: Path) -> list[dict[str, Any]]:
    """A row for each layer and setting; both round on our grid."""
    jobs = jobs_of("llm-compressor", parts)
    methods = [get_method("gptq", **job["ours"]) for job in jobs]
    grids = {}
    for i, (method, job) in enumerate(zip(methods, jobs, strict=True)):
        result = ours(method, job, parts)
        grids |= {f"{i}.scale": values(result.scale).float(), f"{i}.zero": values(result.zero)}
    save_file(parts | grids, folder / "layers.safetensors")
    cases = zip(methods, jobs, run("llm-compressor", jobs, folder), strict=True)
    return [compared("same grid", *case, parts) for case in cases]


def against_awq(searches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each site that both search.

    ratio, their_ratio: the exponents that are chosen. plain, scaled: their error by ours, without
    scales and at our ratio. best: theirs at their ratio by ours at ours; by_default: the same with
    the package's defaults.
    """
    rows = []
    for search in searches:
        defaults = {site["site"]: min(site["errors"]) for site in search["by_default"]}
        for site in search["alike"]:
            errors = site["errors"]  # of the ratios 0, 1 / RATIOS, .., 1
            ours = search["ours"][site["site"]]
            least = min(range(len(errors)), key=errors.__getitem__)
            row = {key: search[key] for key in ("block", "bits")} | {"site": site["site"]}
            row |= {"ratio": ours["ratio"], "their_ratio": least / RATIOS}
            row["plain"] = errors[0] / ours["plain"]
            row["scaled"] = errors[round(ours["ratio"] * RATIOS)] / ours["scaled"]
            row["best"] = errors[least] / ours["scaled"]
            rows.append(row | {"by_default": defaults[site["site"]] / ours["scaled"]})
    return rows


def table(record: dict[str, Any]) -> list[str]:
    """Markdown: from the least to the largest over layers and bits, and the largest tie."""
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in record["gptq"]:
        key = (row["package"], row["setting"], str(row["group_size"]), row["comparison"])
        kinds.setdefault(key, []).append(row)
    lines = [
        "| package | setting | group | compared | codes equal % | rows equal % | tie | loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, rows in kinds.items():
        ties = [row["tie"] for row in rows if row["tie"] is not None]
        cells = [
            span([100 * row["codes"] for row in rows], ".2f"),
            span([100 * row["rows"] for row in rows], ".1f"),
            f"{max(ties):.1g}" if ties else "",
            span([row["loss"] for row in rows], ".4f"),
        ]
        lines.append("| " + " | ".join((*key, *cells)) + " |")
    return lines


def span(numbers: list[float], form: str) -> str:
    """The least and the largest, or one where they look the same."""
    ends = f"{min(numbers):{form}}", f"{max(numbers):{form}}"
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def main() -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="mini")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for package in SETTINGS:
        there = state(get_package(package))
        if there.status != "installed":
            parser.error(f"{package} cannot run: {there.reason}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        parts, searches = capture(options.data, folder)
        rows = against_gptqmodel(parts, folder)
        hessians = json.loads((folder / "gptqmodel.json").read_text())
        alike = {"duo_scaling": False, "n_grid": RATIOS + 1}
        asked = [search | {"alike": alike, "by_default": {}} for search in searches]
        write_text(folder / "awq.json", json.dumps(asked))
        rows += against_llm_compressor(parts, folder)
        searches = json.loads((folder / "awq.json").read_text())
    record = {
        "environment": environment(),
        "calibration": f"{SAMPLES} x {LENGTH} tokens of {options.data}, seed 0",
        "hessian_difference": hessians,
        "gptq": rows,
        "awq": against_awq(searches),
    }
    print("\n".join(table(record)))
    if options.json:
        write_text(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
