"""The commands `qbench compare` and `qbench baseline`: is a candidate worse than a base?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from qbench.commands.options import (
    Data,
    announce,
    as_names,
    out,
    refuse_unused,
    say,
    typed,
)
from qbench.commands.tables import TableRow, show_table
from qbench.commands.variants import is_file_of_method, read_variant_here
from qbench.errors import ConfigError, unknown_name
from qbench.files.atomic import remove_file, require_place
from qbench.files.ordinary import is_folder

if TYPE_CHECKING:
    from qbench.comparison.matching import Side
    from qbench.comparison.verdicts import Verdict
    from qbench.stats.sequential import Look

app = typer.Typer()
baseline_app = typer.Typer(no_args_is_help=True, help="Runs kept to compare with: plain files.")
Baselines = Annotated[Path, typer.Option("--baselines", help="Where baselines lie.")]
HERE = Path("baselines")


@app.command(
    epilog="Examples: `qbench compare runs/main runs/mine`   "
    "`qbench compare runs/smollm2-135m:gptq runs/smollm2-135m:'gptq 3b g64 damp=0.1'`   "
    "`qbench compare uniquanf-3b runs/mine:my_variant --markdown comment.md`   "
    "`qbench compare HEAD~3:methods/gptq.py methods/gptq.py`"
)
def compare(
    context: typer.Context,
    base: Annotated[
        str,
        typer.Argument(
            help="A run's folder, a record's file or a baseline. :LABEL chooses cells, by a whole "
            "label or its start; a method's name alone, against a single variant, its cell with "
            "default parameters. Or a method's FILE.py or REVISION:FILE.py, which is run as "
            "`qbench regress` does."
        ),
    ],
    candidate: Annotated[str, typer.Argument(help="The same; what is judged.")],
    tasks: Annotated[
        str | None, typer.Option(help="Those that count, with commas; default all with a margin.")
    ] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option("--margin", help="METRIC=AMOUNT that still passes, such as acc=0.02."),
    ] = None,
    allow: Annotated[
        str | None,
        typer.Option(
            help="What may differ: calibration, dtype, batch_size, device, evaluation, packages."
        ),
    ] = None,
    look: Annotated[
        str | None,
        typer.Option(
            help="2/4: by the first 2 of 4 draws, which go on where this is undecided; see "
            "docs/gate.md."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 where undecided, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="File for a comment in Markdown.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="On which a method's file is run; default smollm2-135m.")
    ] = None,
    data: Data = None,
    baselines: Baselines = HERE,
) -> None:
    """Is CANDIDATE worse than BASE? Paired on the same items, by margins.

    Exit code 0: no; 1: yes, worse beyond a margin; 2: not comparable, or nothing to compare.
    """
    from qbench.commands.gated import judged
    from qbench.commands.questions import with_questions
    from qbench.tasks.data import require_data

    files = [is_file_of_method(side) for side in (base, candidate)]
    _refuse_useless(context, files, baselines)
    if data is not None:
        require_data(data)
    require_place(markdown)
    limits = _limits(margin, tasks, allow)
    schedule = _schedule(look)
    if markdown is not None:
        remove_file(markdown)  # whatever ends this, no verdict of an earlier one stays
    flags = {"model": None if model is None else (model,), "data": data}
    with _lines_on_stderr(as_json):
        if all(files):
            variants = read_variant_here(base), read_variant_here(candidate)
            verdict = judged(*variants, flags, limits=limits)
        else:
            sides = (_read_or_run(text, baselines, flags, limits) for text in (base, candidate))
            first, second = sides
            verdict = _compared(first, second, schedule, limits)
            verdict = with_questions(verdict, first, data)
    raise typer.Exit(report(verdict, as_json, markdown, strict))


def _refuse_useless(context: typer.Context, files: Sequence[bool], baselines: Path) -> None:
    """ConfigError for an option that does nothing here. files: of which sides methods are run."""
    if not any(files):
        refuse_unused(context, ("model",), "where no method's file is run")
    if all(files):
        refuse_unused(context, ("baselines",), "where both methods are run from their files")
        refuse_unused(context, ("look",), "of two files, which have looks of their own")
    elif typed(context, ("baselines",)) and not is_folder(baselines):
        raise ConfigError(f"--baselines {baselines} is no folder; give the one that holds them")


def _limits(margin: list[str] | None, tasks: str | None, allow: str | None) -> dict[str, Any]:
    """What `qbench.comparison.verdicts.compare` is told of margins, tasks and what may differ."""
    from qbench.comparison.comparable import ALLOWABLE
    from qbench.comparison.endpoints import read_margins

    allowed = as_names(allow, "--allow") or ()
    for name in allowed:
        if name not in ALLOWABLE:
            raise ConfigError(unknown_name("name in --allow", name, ALLOWABLE))
    return {
        "margins": read_margins(margin or []),
        "tasks": as_names(tasks, "--tasks"),
        "allowed": allowed,
    }


class Schedule(NamedTuple):
    """The looks up to the one that is asked for. draws: how many there are to be in all."""

    looks: tuple[Look, ...]
    draws: int


def _schedule(text: str | None) -> Schedule | None:
    """Of `2/4`: the looks up to that after 2 of 4 draws; ConfigError where there is none."""
    from qbench.experiment.grid import MOST_DRAWS
    from qbench.stats.sequential import looks

    if text is None:
        return None
    try:
        draws, last = map(int, text.split("/"))
        if not 1 <= draws <= last <= MOST_DRAWS:
            raise ValueError("there are no such looks")
    except ValueError:
        raise ConfigError(
            f"--look {text!r} is not such as 2/4: after 2 of 4 draws, of which there are 1 to "
            f"{MOST_DRAWS}"
        ) from None
    every = looks(last)
    for count, look in enumerate(every, start=1):
        if look.draws == draws:
            return Schedule(every[:count], last)
    after = ", ".join(f"{look.draws}/{last}" for look in every)
    raise ConfigError(f"--look {text}: of {last} draws there are looks at {after}")


def _compared(
    base: Side, candidate: Side, schedule: Schedule | None, limits: dict[str, Any]
) -> Verdict:
    """The verdict; of one look of several, with what those before it say."""
    from qbench.comparison.verdicts import Looked
    from qbench.comparison.verdicts import compare as compared

    if schedule is None:
        return compared(base, candidate, **limits)
    verdicts = [compared(base, candidate, look=look, **limits) for look in schedule.looks]
    if len(verdicts) == 1 and schedule.looks[0].last:
        return verdicts[0]
    looked = []
    for look, verdict in zip(schedule.looks, verdicts, strict=True):
        looked.append(Looked(look.draws, look.level, verdict.outcome))
    return replace(verdicts[-1], looks=tuple(looked), draws=schedule.draws)


def report(verdict: Verdict, as_json: bool, markdown: Path | None, strict: bool) -> int:
    """Print a verdict, write its Markdown where asked for, and return the exit code."""
    from qbench.comparison import written
    from qbench.comparison.verdicts import EXIT
    from qbench.files.atomic import write_text

    if markdown is not None:
        write_text(markdown, written.markdown(verdict))
    if as_json:
        print(json.dumps(written.as_json(verdict), indent=2, allow_nan=False))
    else:
        _show(verdict)
    if strict and verdict.outcome == "undecided":
        return 1
    return EXIT[verdict.outcome]


@baseline_app.command("save", epilog="Example: `qbench baseline save runs/main:gptq gptq-main`")
def baseline_save(
    run: Annotated[str, typer.Argument(help="A run's folder; :LABEL chooses.")],
    name: Annotated[str, typer.Argument(help="What it is called from now on.")],
    baselines: Baselines = HERE,
) -> None:
    """Keep the records of a run and the rows of its items, to compare with later."""
    from qbench.commands.sides import save_baseline

    folder = save_baseline(_side(run, baselines), name, baselines)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(f"{folder}  {size / 1e6:.1f} MB")


@baseline_app.command("list")
def baseline_list(baselines: Baselines = HERE) -> None:
    """The saved baselines, with their cells."""
    from qbench.commands.sides import baseline_names

    for name in baseline_names(baselines):
        side = _side(str(baselines / name), baselines)
        cells = [record.cell for record in side.quantized]
        several = len({cell.model for cell in cells}) > 1
        labels = [f"{cell.model} {cell.label}" if several else cell.label for cell in cells]
        say(f"{name}  {', '.join(dict.fromkeys(labels))}")


@baseline_app.command("show", epilog="Example: `qbench baseline show gptq-main`")
def baseline_show(
    name: Annotated[str, typer.Argument(help="Of a baseline, or a run's folder.")],
    baselines: Baselines = HERE,
) -> None:
    """Its cells and scores, and the command that made each."""
    from qbench.reports.numbers import score_text

    for record in _side(name, baselines).records:
        say(f"{record.id}  {record.cell.model}  {record.cell.label}  seed {record.cell.seed}")
        for score in record.scores:
            name = f"{score.task}  {score.metric}  {score.filter}"
            say(f"  {name}  {score_text(score)}  n={score.n}")
        say(f"  {record.command}")


def _side(text: str, baselines: Path, tasks: Sequence[str] | None = None) -> Side:
    from qbench.commands.sides import read_side

    side, complaints = read_side(text, baselines, tasks)
    for complaint in complaints:
        announce(f"warning: {complaint}")
    return side


@contextmanager
def _lines_on_stderr(wanted: bool) -> Iterator[None]:
    """Let what a run says go to stderr, where stdout is for JSON."""
    before = out.stderr
    out.stderr = wanted
    try:
        yield
    finally:
        out.stderr = before


def _read_or_run(text: str, baselines: Path, flags: dict[str, Any], limits: dict[str, Any]) -> Side:
    """What lies there; a method's file is run for it."""
    from qbench.commands.gated import judged_alone

    if is_file_of_method(text):
        return judged_alone(read_variant_here(text), flags)
    return _side(text, baselines, limits["tasks"])


def _show(verdict: Verdict) -> None:
    """The table, then what was not compared, the changed answers and the costs."""
    from qbench.comparison import written

    verdict = written.with_models(verdict)
    _show_table(verdict)
    for cell in verdict.cells:
        for finding in cell.findings:
            if finding.needed:
                say(f"needs    {cell.label}  {finding.endpoint.name}: {finding.needed}")
    for cell in verdict.cells:
        if cell.status != "compared":
            say(written.lost_line(cell))
        for finding in cell.findings:
            for line in written.flip_lines(finding):
                say(f"answers  {cell.label}  {line}")
        if cell.costs:
            say(f"costs    {cell.label}  {', '.join(written.cost_lines(cell))}")
    for line in written.look_lines(verdict):
        say(f"looks    {line}")
    for note in dict.fromkeys(note for cell in verdict.cells for note in cell.notes):
        say(f"note     {note}")
    say(f"{verdict.outcome}: {written.SENTENCES[verdict.outcome]}")


def _show_table(verdict: Verdict) -> None:
    """A line for each cell, across the table, and below it its scores."""
    from qbench.comparison import written

    kept = [k for k, name in enumerate(written.HEADINGS) if name not in ("cell", "needs")]
    headings = [written.HEADINGS[k] for k in kept]
    rows: list[TableRow] = []
    for cell in verdict.cells:
        if cell.findings:
            rows.append(cell.label)
        for finding in cell.findings:
            fields = written.fields(cell, finding)
            rows.append([fields[k] for k in kept])
    if rows:
        show_table(headings, rows, right=headings[2:])
