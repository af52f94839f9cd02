"""`maskreid push`: a checkpoint with its model card, for the Hub."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal, say

if TYPE_CHECKING:
    from maskreid_dist.evaluation.model_card import Measured


@one_line_errors
def push(
    checkpoint: Annotated[
        Path, typer.Argument(help="A run directory, one of its checkpoints, or pretrained:walkers.")
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The Hub's repository.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go there, and show the card; no network.")
    ] = False,
    shards: Annotated[
        str | None, typer.Option(help="Rank the gallery of these shards first, for the card's model-index.")
    ] = None,
    license_id: Annotated[
        str, typer.Option("--license", help="Of the weights, as the Hub names it; other: not stated.")
    ] = "other",
    data_license: Annotated[
        str | None, typer.Option(help="Of the training images, in words; shards do not record it.")
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(help="Who or what made the masks, in words, where the shards do not record it."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also keep the folder here.")] = None,
) -> None:
    """Publish weights, manifest and model card; --dry-run says what they are and sends nothing."""
    from maskreid_dist.evaluation.model_card import model_card
    from maskreid_dist.files import check_writable
    from maskreid_dist.model.checkpoint import find_checkpoint
    from maskreid_dist.model.publishing import CARD, write_published
    from maskreid_shards.opening import read_text

    check_repository(repository)
    if not dry_run and find_spec("huggingface_hub") is None:
        raise UserError("push needs the package huggingface_hub: pip install huggingface_hub; or --dry-run")
    if output:
        check_writable(output, folder=True)
    found, _ = find_checkpoint(checkpoint)
    measured = _measured(found.path, shards) if shards else None
    name = repository.partition("/")[2]
    words = license_id, data_license, masks
    card = model_card(found, *words, name=name, measured=measured)
    with TemporaryDirectory() as place:
        folder = output or Path(place, name)
        sizes = write_published(found, folder, card)
        for file, size in sizes.items():
            say(f"{file}: {size:,} bytes")
        if dry_run:
            say(f"\n{read_text(folder / CARD)}")
            say(f"dry run: nothing was sent to {repository}" + (f"; {output}" if output else ""))
            return
        _send(folder, repository)


def check_repository(repository: str) -> None:
    """Raises UserError: not of the form OWNER/NAME in the Hub's letters."""
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository, re.ASCII) is None:
        raise UserError(f"{repository}: write OWNER/NAME, in letters, digits, -, _ and .")


def _measured(checkpoint: Path, shards: str) -> "Measured":
    from maskreid_dist.evaluation.evaluate import evaluate_checkpoint, percentages
    from maskreid_dist.evaluation.model_card import Measured
    from maskreid_shards import open_shards

    opened = open_shards(shards)
    _, ranked = evaluate_checkpoint(checkpoint, opened, Terminal())
    gallery = len(opened.split("gallery"))
    return Measured(opened.manifest.dataset, percentages(ranked.result), ranked.result.valid_queries, gallery)


def _send(folder: Path, repository: str) -> None:
    """By huggingface_hub and its own sign-in."""
    hub: Any = import_module("huggingface_hub")
    api = hub.HfApi()
    api.create_repo(repo_id=repository, repo_type="model", exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=str(folder), repo_type="model")
    say(f"sent to {repository}")
