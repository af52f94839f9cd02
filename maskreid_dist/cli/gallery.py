"""`maskreid embed`, `enrol`, `forget`, `search`: galleries of embeddings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.mask_flags import Model, Weights
from maskreid_dist.cli.options import AsJson, Cache
from maskreid_dist.cli.ranks import share_work
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal, say, say_json

if TYPE_CHECKING:
    import torch

    from maskreid_dist.evaluation.ranks import Ranks
    from maskreid_dist.gallery import Extractor

Run = Annotated[
    Path,
    typer.Argument(
        help="A run directory, one of its checkpoints, or pretrained:walkers.", show_default=False
    ),
]
Folder = Annotated[Path, typer.Argument(help="Folder of a gallery.", show_default=False)]
Pictures = Annotated[list[Path], typer.Argument(help="Crops of persons.", show_default=False)]
Masks = Annotated[
    list[Path] | None, typer.Option("--mask", help="A picture's mask, in the pictures' order; repeatable.")
]
Segment = Annotated[Model | None, typer.Option(help="Make the pictures' masks with this network.")]


@one_line_errors
def embed(
    run: Run,
    shards: Annotated[str, typer.Argument(help="Shards, a folder or a URL.", show_default=False)],
    out: Folder,
    split: Annotated[str, typer.Option(help="Name of the split.")] = "gallery",
    cache: Cache = None,
) -> None:
    """Embed a split of shards into a gallery; killed, the same command goes on."""

    def work(ranks: "Ranks") -> None:
        from maskreid_dist.files import check_writable
        from maskreid_dist.gallery.enrol import embed_split_into
        from maskreid_dist.progress import progress_bar
        from maskreid_shards import open_shards

        check_writable(out, folder=True)
        opened = open_shards(shards, cache=cache)
        opened.split(split)
        extractor = _extractor(run, ranks.device)
        if ranks.size > 1:
            from maskreid_dist.training.facts import facts_of_evaluation

            options = {"--split": split, "the checkpoint": str(extractor.model)}
            ranks.agree(facts_of_evaluation(extractor.config, ranks.device, {"shards": opened}, options))
        with progress_bar(f"embedding {split}", Terminal(stderr=True, quiet=not ranks.is_first)) as progress:
            before = embed_split_into(out, extractor, opened, split, progress, ranks=ranks)
        if ranks.is_first:
            held = f", {before} of them from before" if before else ""
            say(f"{len(opened.split(split))} embeddings{held}: {out.absolute()}")

    share_work(work)


@one_line_errors
def enrol(
    run: Run,
    gallery: Folder,
    pictures: Pictures,
    pid: Annotated[int, typer.Option(help="Number of the person.", show_default=False)],
    camera: Annotated[int, typer.Option(help="Number of the camera.")] = 1,
    masks: Masks = None,
    segment: Segment = None,
    weights: Weights = None,
) -> None:
    """Add pictures of one person to a gallery, which is made where there is none."""
    from maskreid_dist.files import check_writable
    from maskreid_dist.gallery.enrol import enrol as enrol_pictures

    check_writable(gallery, folder=True)
    extractor = _segmenting(_extractor(run), masks, segment, weights)
    count = enrol_pictures(gallery, extractor, pictures, masks, pid=pid, camid=camera)
    say(f"{count} images in {gallery.absolute()}")


@one_line_errors
def forget(
    gallery: Folder,
    pids: Annotated[list[int] | None, typer.Option("--pid", help="Number of a person; repeatable.")] = None,
    keys: Annotated[list[str] | None, typer.Option("--key", help="Key of an image; repeatable.")] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Write the gallery anew without all that was taken out.")
    ] = False,
) -> None:
    """Take persons or images out of a gallery; with --compact their embeddings are gone from the disk."""
    from maskreid_dist.gallery import Gallery

    if not (pids or keys or compact):
        raise UserError("name whom to take out with --pid or --key, or give --compact")
    with Gallery.open(gallery, writing=True) as opened:
        taken = opened.forget(pids=pids or (), keys=keys or ())
        if (pids or keys) and not taken:
            raise UserError(f"{gallery}: none of these is in it")
        gone = opened.compact() if compact else 0
        left = int(opened.alive.sum())
    say(f"{taken} images taken out, {gone} deleted, {left} left: {gallery.absolute()}")


@one_line_errors
def search(
    run: Run,
    gallery: Folder,
    pictures: Pictures,
    masks: Masks = None,
    segment: Segment = None,
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="Images of each list.")] = 20,
    html: Annotated[Path | None, typer.Option(help="Also write the lists with pictures here.")] = None,
    index: Annotated[
        str,
        typer.Option(
            help="What finds them: exact, our own; faiss, the same by FAISS; faiss:FACTORY (faiss:HNSW32), "
            "approximately, by an index that FAISS builds for this search."
        ),
    ] = "exact",
    as_json: AsJson = False,
) -> None:
    """The gallery images nearest to pictures, exactly."""
    from maskreid_dist.files import check_writable
    from maskreid_dist.gallery import Gallery
    from maskreid_dist.gallery.search import search as find
    from maskreid_dist.gallery.search import write_page
    from maskreid_dist.retrieval.faiss_lists import check_index, index_text

    check_index(index)
    if html:
        check_writable(html)
    opened = Gallery.open(gallery)
    extractor = _segmenting(_extractor(run), masks, segment, weights)
    found = find(extractor, opened, pictures, masks, top, index)
    if html:
        write_page(html, extractor, opened, pictures, masks, found, index)
    if as_json:
        lists = [
            {"query": str(picture), "index": index, "matches": [vars(match) for match in matches]}
            for picture, matches in zip(pictures, found, strict=True)
        ]
        say_json(lists)
        return
    console = Terminal()
    for picture, matches in zip(pictures, found, strict=True):
        table = Table(title=str(picture), box=None, title_justify="left")
        for name in ("rank", "similarity", "probability", "person", "camera", "key"):
            table.add_column(name, justify="left" if name == "key" else "right")
        for rank, match in enumerate(matches, 1):
            chance = "" if match.probability is None else f"{match.probability:.3f}"
            person = (match.person, match.camera, match.key)
            table.add_row(str(rank), f"{match.similarity:.4f}", chance, *person)
        console.print(table, markup=False)
    if text := index_text(index):
        say(text)
    if extractor.calibration is None:
        say("no probabilities: maskreid calibrate makes them")
    if html:
        say(f"page: {html.absolute()}")


def _extractor(run: Path, device: "torch.device | None" = None) -> "Extractor":
    from maskreid_dist.gallery import Extractor

    return Extractor.of(run, device=device)


def _segmenting(
    extractor: "Extractor", masks: list[Path] | None, model: Model | None, weights: Path | None
) -> "Extractor":
    """The extractor, which makes the masks of its pictures where a network for that was named."""
    if model is None:
        if weights is not None:
            raise UserError("--segment-weights without --segment: name the network, such as --segment pose")
        return extractor
    if masks:
        raise UserError("--segment makes the masks: leave out --mask, or --segment")
    from maskreid_dist.segmentation.networks import find_weights, load_segmenter

    extractor.segment = load_segmenter(model, find_weights(model, weights), extractor.device)
    return extractor
