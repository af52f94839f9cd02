"""`maskreid export`: a trained network as ONNX or as torch.export's file."""

from pathlib import Path
from typing import Annotated

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import AsJson, RunOrCheckpoint
from maskreid_dist.terminal import say, say_json


@one_line_errors
def export(
    checkpoint: RunOrCheckpoint,
    output: Annotated[Path, typer.Argument(help="OUT.onnx, or OUT.pt2 for torch.export's.")],
    card: Annotated[Path | None, typer.Option(help="Write a model card in the Hub's form here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the network for other programs: uint8 images and masks in, embeddings out, any batch."""
    from maskreid_dist.evaluation.evaluate import load_network
    from maskreid_dist.evaluation.model_card import model_card
    from maskreid_dist.files import check_writable
    from maskreid_dist.model.checkpoint import find_checkpoint
    from maskreid_dist.model.export import check_export, export_network
    from maskreid_shards.atomic import write_atomically

    check_export(output)
    for path in (output, card):
        if path:
            check_writable(path)
    found, _ = find_checkpoint(checkpoint)
    difference = export_network(load_network(found), found.config, output)
    if card:
        write_atomically(card, model_card(found, name=found.config.name).encode())
    height, width = found.config.data.height, found.config.data.width
    if as_json:
        about = {"file": output.absolute(), "name": found.config.name, "step": found.step}
        say_json({**about, "height": height, "width": width, "largest_difference": difference})
        return
    say(f"{output.absolute()}: step {found.step} of {found.config.name}, {height}x{width} images and masks")
    if difference is None:
        say("not compared with torch: onnxruntime is not installed")
    else:
        say(f"largest difference to torch: {difference:.1e}")
    if card:
        say(f"card: {card.absolute()}")
