"""`maskreid convert`: data sets into shards."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from maskreid_dist.commands.failures import one_line_errors
from maskreid_dist.recipe import load_recipe

convert_app = typer.Typer(no_args_is_help=True, help="Convert a data set into WebDataset shards.")


@convert_app.command("market1501")
@one_line_errors
def convert_market1501(
    src: Annotated[
        Path,
        typer.Argument(
            help="Folder with bounding_box_train, query, bounding_box_test and their _seg folders."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="New folder for the shards.")],
    on_bad_mask: Annotated[
        Literal["fail", "full", "skip"] | None,
        typer.Option(
            help="A mask that is missing, unreadable, empty or coloured: stop, use the full image, or skip the pair. Default: fail."
        ),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Take data.on_bad_mask from this recipe.")] = None,
    shard_mb: Annotated[float, typer.Option(min=0.01, help="Size at which a shard is closed, in MB.")] = 64.0,
    seed: Annotated[int, typer.Option(min=0, help="Deals the identities to shards.")] = 0,
) -> None:
    """Convert a Market-1501 folder with masks."""
    from maskreid_dist.conversion import run_market1501

    policy = on_bad_mask or (load_recipe(recipe).data.on_bad_mask if recipe else "fail")
    report = run_market1501(src, out, policy, round(shard_mb * 1_000_000), seed)
    print("\n".join(report.lines()))
