"""The commands about this machine: `qbench doctor` and `qbench latency`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from qbench.cli_options import err, out
from qbench.errors import ConfigError

app = typer.Typer()


@app.command()
def doctor() -> None:
    """What this machine can do, and why not: hardware, packages, kernels."""
    from qbench.environment import environment
    from qbench.listing import listing

    facts = environment()
    for title in ("hardware", "packages"):
        stated = "  ".join(f"{key}={value}" for key, value in facts[title].items())
        out.print(f"{title}  {stated}", markup=False, highlight=False, soft_wrap=True)
    columns, rows = listing("kernels")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)


@app.command(epilog="Example: `qbench latency --end-to-end smollm2-bcq-3b --threads 2`")
def latency(
    end_to_end: Annotated[Path, typer.Option("--end-to-end", help="A folder that `qbench quantize` wrote.")],
    prompt: Annotated[int, typer.Option(help="Tokens to read.")] = 64,
    tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 32,
    repeats: Annotated[int, typer.Option(help="Of each model, in turns.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Of the processor; default: all.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
) -> None:
    """Tokens per second of a packed model against the dense one, batch 1, in turns."""
    from qbench.decode import compare
    from qbench.environment import environment

    if min(prompt, tokens - 1, repeats) < 1:
        raise ConfigError(f"--prompt {prompt} --tokens {tokens} --repeats {repeats}: give at least 1, 2 and 1")
    with err.status("loading") as status:
        rows = compare(end_to_end, prompt, tokens, repeats, threads, lambda text: status.update(text))
    table = Table(
        "model", "prefill tok/s", "decode tok/s", "first token ms", "peak MB", "kernels", box=None, padding=(0, 2, 0, 0)
    )
    for row in rows:
        spreads = [f"{middle:.1f} ({low:.1f}-{high:.1f})" for middle, low, high in (row.prefill, row.decode)]
        served = ", ".join(f"{name} {count}" for name, count in row.kernels.items()) or "torch"
        table.add_row(row.name, *spreads, f"{1000 * row.first_token:.0f}", f"{row.peak_bytes / 1e6:.0f}", Text(served))
    out.print(table)
    dense = {row.name: row for row in rows}
    ratio = dense["packed bfloat16"].decode[0] / dense["dense bfloat16"].decode[0]
    out.print(f"decode  packed is {ratio:.2f} x dense in bfloat16", highlight=False)
    if json_file is not None:
        facts = {
            "rows": [asdict(row) for row in rows],
            "prompt": prompt,
            "tokens": tokens,
            "environment": environment(),
        }
        json_file.write_text(json.dumps(facts, indent=2) + "\n")
