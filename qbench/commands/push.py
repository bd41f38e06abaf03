"""The command `qbench push`: a saved model on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.commands.options import announce, err, say

if TYPE_CHECKING:
    from qbench.publish import Upload

app = typer.Typer()


@app.command(epilog="Examples: `qbench push DIR me/smollm2-3b`   `qbench push DIR me/m --yes`")
def push(
    folder: Annotated[Path, typer.Argument(help="A folder that `qbench quantize` or a run wrote.")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Upload; without it only say what would be.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    licence: Annotated[
        str | None, typer.Option(help="For the card, such as apache-2.0; default what it names.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="For the card, OWNER/NAME; default what it names.")
    ] = None,
) -> None:
    """Upload a saved model to the Hugging Face hub, once its files are verified.
    By default nothing is sent, and what would be is listed.
    """
    from qbench.publish import plan_upload, upload

    plan = plan_upload(folder, repository, licence, base_model)
    for option in plan.lacks:
        announce(f"warning: the card names no {option[2:]}; give {option}")
    _show(plan)
    if not yes:
        kind = "the private repository " if private else ""
        say(f"nothing was sent; --yes uploads this to {kind}{repository}")
        return
    with err.status(f"uploading to {repository}"):
        address = upload(plan, private)
    say(f"uploaded  {address}")


def _show(plan: Upload) -> None:
    for name, path in sorted(plan.files.items()):
        say(f"{path.stat().st_size / 1e6:9.3f} MB  {name}")
    say(f"{plan.nbytes / 1e6:9.3f} MB  {len(plan.files)} files for {plan.repository}")
    for key in ("base_model", "license"):
        if plan.metadata.get(key):
            say(f"card  {key}: {plan.metadata[key]}")
    for entry in plan.metadata.get("model-index") or ():
        say(f"card  model-index: {len(entry['results'])} data sets with scores")
