"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

RunOrCheckpoint = Annotated[
    Path, typer.Argument(help="A run directory, one of its checkpoints, or pretrained:walkers.")
]
RankedShards = Annotated[
    str,
    typer.Argument(help="Shards with the splits query and gallery, a folder or a URL.", show_default=False),
]
Cache = Annotated[Path | None, typer.Option(help="Keep the shards of a URL in this folder.")]
CameraIds = Annotated[
    Literal["labels", "none"],
    typer.Option(help="none: the data has no camera ids; only the query's own image, by key, is left out."),
]
FiguresFile = Annotated[Path | None, typer.Option(help="Write the figures as JSON here.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")]
