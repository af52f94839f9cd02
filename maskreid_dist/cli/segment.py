"""What every `maskreid segment LAYOUT` does with what the layout's scanner found;
its options are the parameters."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from maskreid_dist.cli import mask_flags as flags
from maskreid_dist.progress import progress_bar
from maskreid_dist.terminal import say
from maskreid_shards import Layout


def segment_layout(
    scan: Callable[[], Layout],
    name: str,
    *,
    out: Annotated[
        Path, typer.Argument(help="Folder for the masks; existing ones are kept.", show_default=False)
    ],
    model: Annotated[
        flags.Model, typer.Option(help="MediaPipe's pose network, or one of torchvision.")
    ] = "pose",
    segment_weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", help="Weights. Default: the published ones, from torch.hub's cache or the network."
        ),
    ] = None,
    on_bad_image: flags.OnBadImage = "fail",
    on_orientation: flags.OnOrientation = "fail",
    follow_links: flags.FollowLinks = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 16,
    height: flags.PixelHeight = None,
    landmarks: flags.LandmarksToo = False,
) -> None:
    """Make the masks of what `scan` finds, and print the report."""
    from maskreid_dist.segmentation.masks import segment

    try:
        layout = scan()
        with progress_bar("segmenting") as progress:
            report = segment(
                layout,
                out,
                model=model,
                weights=segment_weights,
                device=device,
                batch_size=batch,
                input_height=height,
                landmarks=landmarks,
                on_orientation=on_orientation,
                on_bad_image=on_bad_image,
                follow_links=follow_links,
                progress=progress,
            )
    except KeyboardInterrupt:
        say("maskreid: interrupted; the masks made are kept, the same command continues", file=sys.stderr)
        raise typer.Exit(130) from None
    say("\n".join(report.lines()))
