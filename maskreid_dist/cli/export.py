"""`maskreid export`: a trained network as ONNX or as torch.export's file."""

from pathlib import Path
from typing import Annotated

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.terminal import say


@one_line_errors
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run directory, or one of its checkpoints.")],
    output: Annotated[Path, typer.Argument(help="OUT.onnx, or OUT.pt2 for torch.export's.")],
) -> None:
    """Write the network for other programs: uint8 images and masks in, embeddings out, any batch."""
    from maskreid_dist.evaluation.evaluate import load_network
    from maskreid_dist.files import check_writable
    from maskreid_dist.model.checkpoint import find_checkpoint
    from maskreid_dist.model.export import check_export, export_network

    check_export(output)
    check_writable(output)
    found, _ = find_checkpoint(checkpoint)
    difference = export_network(load_network(found), found.config, output)
    size = f"{found.config.data.height}x{found.config.data.width}"
    say(f"{output.absolute()}: step {found.step} of {found.config.name}, {size} images and masks")
    if difference is None:
        say("not compared with torch: onnxruntime is not installed")
    else:
        say(f"largest difference to torch: {difference:.1e}")
