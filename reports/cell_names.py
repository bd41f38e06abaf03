"""In which order cells come, and what they are called."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from qbench.comparison.judging import code_of, packages_of
from qbench.comparison.pairs import is_unquantized
from qbench.errors import QbenchError
from qbench.records import Cell, Record, Scalar
from qbench.registry import declared

# Of `_traits`, by what cells are judged: one is not held against another's, of whatever method.
JUDGED = ("dtype", "device", "batch", "evaluation", "revision", "packages")
DECLARED = "declared "  # before the name of a task, which is judged by what it declares, too


def format_of(record: Record) -> str:
    """What its weights are: `uniform`, `binary`, ...; empty where its method is not there any more.

    Of a model that others have quantized, what they did.
    """
    cell = record.cell
    if cell.stored_as is not None and cell.scheme is None:
        return cell.stored_as
    try:
        declared_format = declared(cell.method).format
    except QbenchError:
        return ""
    return f"rotated-{declared_format}" if cell.params.get("rotate") else declared_format


def ordered(records: Iterable[Record]) -> list[Record]:
    """By model, bits (the unquantized model first), method, parameters, group size, calibration,
    seed.
    """

    def key(record: Record) -> tuple[object, ...]:
        cell = record.cell
        bits = -1.0
        group = 0
        if cell.scheme:
            bits = cell.scheme.width
            group = cell.scheme.group_size or 1 << 30  # one group per channel comes last
        sample = cell.calibration
        calibration = (sample.data, sample.samples, sample.length) if sample else ()
        return (
            cell.model,
            bits,
            cell.method != "none",
            cell.method,
            params_text(cell),
            group,
            calibration,
            cell.seed,
            record.id,
        )

    return sorted(records, key=key)


def names(records: Sequence[Record], group: bool = True) -> dict[str, str]:
    """Each cell's name by its id: method, parameters, and what else tells it from its siblings.

    The bits are not part of it, nor is the group size where `group` is False. Parameters that all
    cells of the method share are told by `shared_parameters` instead.
    """
    shared = _shared(records)
    differing = _differing(records)
    asked = _asked_again(records)
    result = {}
    for record in records:
        words = ["unquantized" if is_unquantized(record) else record.cell.made_by]
        words.append(params_text(record.cell, shared[_method(record.cell)]))
        told = _exceptions(record.cell) - shared[_method(record.cell)]
        for relatives, trait, value in _told_apart(record):
            differs = (relatives, trait) in differing
            if trait == "layers":
                differs = bool(told)
            if differs and (group or trait != "group"):
                words.append(value)
        words.append(asked.get(record.id, ""))
        result[record.id] = " ".join(word for word in words if word)
    return result


def _differing(records: Sequence[Record]) -> set[tuple[tuple[str, ...], str]]:
    """Relatives and the traits that are not the same in all of them."""
    values: dict[tuple[tuple[str, ...], str], set[str]] = {}
    for record in records:
        for relatives, trait, value in _told_apart(record):
            if trait != "packages" or record.status == "ok":  # others may not say
                values.setdefault((relatives, trait), set()).add(value)
    return {key for key, several in values.items() if len(several) > 1}


def _asked_again(records: Sequence[Record]) -> dict[str, str]:
    """By id the tasks of cells, where several commands have asked one model different ones."""
    asked = {
        record.id: f"tasks={','.join(spec.name for spec in record.cell.tasks)}"
        for record in records
    }
    if len(set(asked.values())) == 1:
        return {}
    alike: dict[str, list[str]] = {}
    for record in records:
        alike.setdefault(record.cell.artifact, []).append(record.id)
    told: dict[str, str] = {}
    for ids in alike.values():
        if len({asked[name] for name in ids}) > 1:
            told |= {name: asked[name] for name in ids}
    return told


def _told_apart(record: Record) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Each trait of a cell, with those that it must tell it from: its family, or all of its model.

    Relatives, the trait's name and its value.
    """
    family = _family(record.cell)
    for trait, value in _traits(record).items():
        yield (record.cell.model,) if _is_of_judging(trait) else family, trait, value


def judged_in_words(records: Sequence[Record]) -> list[str]:
    """Of each, what tells how it was judged from the others: `bfloat16`, `cuda`, `batch=4`, ...

    Empty where all were judged alike, but for how tasks were asked, which is not among it.
    """
    traits = [_traits(record) for record in records]
    keys = [key for key in dict.fromkeys(chain(*traits)) if _is_of_judging(key)]
    differing = [key for key in keys if len({own[key] for own in traits if key in own}) > 1]
    return [" ".join(own[key] for key in differing if own.get(key)) for own in traits]


def _is_of_judging(key: str) -> bool:
    return key in JUDGED or key.startswith(DECLARED)


def shared_parameters(records: Sequence[Record]) -> str:
    """The parameters that all cells of a method share, which names leave out; empty without any.

    `Parameters of all their cells: flexround, uniquanf epochs=1; gptq damp=0.1.` With the model
    behind the method where its cells of another model share others.
    """
    texts: dict[tuple[str, str], str] = {}
    for place, shared in _shared(ordered(records)).items():
        texts[place] = " ".join(f"{key}={value}" for key, value in sorted(shared))
    methods: dict[str, dict[str, None]] = {}
    for (model, method), text in texts.items():
        if text:
            alike = {told for (_, other), told in texts.items() if other == method}
            name = method if len(alike) == 1 else f"{method} of {model}"
            methods.setdefault(text, {})[name] = None
    if not methods:
        return ""
    parts = [f"{', '.join(names)} {text}" for text, names in methods.items()]
    return f"Parameters of all their cells: {'; '.join(parts)}."


def _shared(records: Sequence[Record]) -> dict[tuple[str, str], set[tuple[str, Scalar]]]:
    """Model and method -> the parameters that have one value in all of its cells.

    What single layers have in place of the bits is `layers` among them.
    """
    shared: dict[tuple[str, str], set[tuple[str, Scalar]]] = {}
    for record in records:
        own = {*record.cell.params.items(), *_exceptions(record.cell)}
        shared[_method(record.cell)] = shared.get(_method(record.cell), own) & own
    return shared


def _exceptions(cell: Cell) -> set[tuple[str, Scalar]]:
    whole = cell.scheme.exceptions if cell.scheme else ""
    return {("layers", whole)} if whole else set()


def _method(cell: Cell) -> tuple[str, str]:
    return cell.model, cell.method


def _family(cell: Cell) -> tuple[str, ...]:
    # What divides bits looks at calibration text, also where the method does not.
    divided = "divided" if cell.scheme and cell.scheme.budget is not None else ""
    return cell.model, cell.method, params_text(cell), divided


def _traits(record: Record) -> dict[str, str]:
    """What may tell two cells of one method apart, as it is written in names."""
    cell = record.cell
    scheme = cell.scheme
    group = "channel"
    if scheme and scheme.group_size:
        group = f"g{scheme.group_size}"
    calibration = text = walk = ""
    if cell.calibration:
        calibration = cell.calibration.label
        text = f"text={cell.calibration.sha256[:8]}"
        walk = f"calibrated in {cell.calibration.dtype}"
    recipe = {"recipe": f"recipe={cell.recipe}"} if cell.recipe else {}
    return {
        "group": group,
        "symmetric": "sym" if scheme and scheme.symmetric else "",
        "layers": _layers(cell),
        "calibration": calibration,
        "text": text,
        "walk": walk,
        "seed": f"seed={cell.seed}",
        "dtype": cell.dtype,
        "device": cell.device,
        "batch": f"batch={cell.batch_size}",
        "evaluation": f"evaluation={code_of(record)}",
        "source": f"source={cell.source}",
        "quantization": f"quantization={cell.quantization}",
        "revision": f"revision={cell.revision[:12]}",
        "packages": packages_text(record),
        **recipe,
        **_declared(record),
    }


def _declared(record: Record) -> dict[str, str]:
    """By task that a cell was asked, what tells it from others of its name; none in older records.

    That of another task says nothing of this one, so that each is told for itself.
    """
    if record.judging is None:
        return {}
    told = record.judging.tasks
    names = [spec.name for spec in record.cell.tasks if spec.name in told]
    return {f"{DECLARED}{name}": f"evaluation={name}:{told[name]}" for name in names}


def _layers(cell: Cell) -> str:
    """What single layers and the head have in place of the bits; long rules as labels tell them."""
    if cell.scheme is None:
        return ""
    rest = replace(cell.scheme, rules=()).exceptions
    return ", ".join(filter(None, (cell.scheme.told_rules, rest)))


def packages_text(record: Record) -> str:
    """`lm_eval=0.4.13 torch=2.13.0 ...`: with which versions a cell was judged."""
    return " ".join(f"{name}={known}" for name, known in packages_of(record).items() if known)


def params_text(cell: Cell, without: Collection[tuple[str, Scalar]] = ()) -> str:
    """`clip=none period=4`, sorted by name. without: parameters with values that are left out."""
    told = [item for item in sorted(cell.params.items()) if item not in without]
    return " ".join(f"{key}={value}" for key, value in told)
