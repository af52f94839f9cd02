"""`maskreid masks`: the quality of the masks in finished shards."""

from pathlib import Path
from typing import Annotated

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson
from maskreid_dist.progress import progress_bar
from maskreid_dist.terminal import say, say_json


@one_line_errors
def masks(
    shards: Annotated[str, typer.Argument(help="Shards made by `maskreid convert`, a folder or a URL.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Write worst.png, coverage.png and masks.json into this folder."),
    ] = None,
    worst: Annotated[int, typer.Option(min=1, help="Masks on the contact sheet.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Judge the masks of shards: coverage, empty, full, fragmented and tiny
    ones, and pictures of the worst."""
    from maskreid_dist.files import check_writable
    from maskreid_dist.report.masks import quality_lines, write_quality
    from maskreid_shards import judge_masks, open_shards

    if output:
        check_writable(output, folder=True)
    shard_set = open_shards(shards)
    total, judged = sum(len(shard_set.split(name)) for name in shard_set.splits), 0
    with progress_bar("judging masks") as progress:

        def count(masks: int) -> None:
            nonlocal judged
            judged += masks
            progress(judged, total)

        report = judge_masks(shard_set, progress=count)
    if as_json:
        say_json(report.content())
    else:
        say("\n".join(quality_lines(report)))
    if output:
        written = write_quality(report, shard_set, output, worst)
        if not as_json:
            say("\n".join(str(path) for path in written))
