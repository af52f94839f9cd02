"""`maskreid init`: a commented recipe for given shards and this machine."""

from pathlib import Path
from typing import Annotated

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import say


@one_line_errors
def init(
    shards: Annotated[
        str, typer.Argument(help="Shards with a split train, a folder or a URL.", show_default=False)
    ],
    recipe: Annotated[Path, typer.Argument(help="TOML file to write.", show_default=False)],
    ranks: Annotated[int, typer.Option(min=1, help="Ranks that will train.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a recipe for these shards: P, K, steps and workers by their statistics and this machine."""
    from maskreid_dist.files import check_writable
    from maskreid_dist.planning.first_recipe import first_recipe
    from maskreid_dist.recipe import load_recipe
    from maskreid_shards import open_shards
    from maskreid_shards.atomic import write_atomically

    check_writable(recipe)
    if recipe.exists() and not force:
        raise UserError(f"{recipe}: is there already; choose another name, or --force")
    opened = open_shards(shards)
    location = shards if "://" in shards else str(Path(shards).resolve())
    text = first_recipe(opened, location, recipe.stem, ranks)
    write_atomically(recipe, text.encode())
    load_recipe(recipe, ())  # what was written is valid, or a defect
    say(f"recipe: {recipe.absolute()}")
    launched = f"deepspeed --num_gpus {ranks} --module maskreid_dist.cli.train"
    starts = "maskreid train" if ranks == 1 else launched
    say(f"train:  {starts} {recipe}")
