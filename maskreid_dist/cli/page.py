"""`maskreid page`: a page that searches a gallery in a browser, without a server."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.options import RunOrCheckpoint
from maskreid_dist.errors import UserError
from maskreid_dist.terminal import say

if TYPE_CHECKING:
    from maskreid_dist.gallery import Extractor
    from maskreid_dist.webpage.site import Segmenter


@one_line_errors
def page(
    run: RunOrCheckpoint,
    out: Annotated[Path, typer.Option(help="Folder of the page.", show_default=False)],
    gallery: Annotated[Path | None, typer.Option(help="Gallery of `maskreid embed` or `enrol`.")] = None,
    shards: Annotated[
        str | None, typer.Option(help="Without --gallery: embed this split gallery. Default: the run's.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Images of the gallery that the page has.")] = 1000,
    top: Annotated[int, typer.Option(min=1, help="Images of a list.")] = 20,
    segment: Annotated[
        Literal["pose"] | None, typer.Option(help="Make masks in the browser too, by this network.")
    ] = None,
    segment_weights: Annotated[
        Path | None, typer.Option(help="Weights of the pose network. Default: the published ones.")
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(help="onnxruntime-web's tarball, or its folder. Default: kept, or fetched from npm."),
    ] = None,
) -> None:
    """Write a page that ranks a gallery for a crop in the browser, from files alone: index.html opens it."""
    from maskreid_dist.files import check_writable
    from maskreid_dist.gallery import Extractor, Gallery
    from maskreid_dist.gallery.enrol import check_model
    from maskreid_dist.model.export import check_export, export_bytes
    from maskreid_dist.webpage.runtime import find_runtime
    from maskreid_dist.webpage.site import Contents, check_page_folder, write_site

    if gallery and shards:
        raise UserError("--gallery and --shards both name the images: give one of them")
    check_writable(out, folder=True)
    check_page_folder(out)
    check_export(out / "network.onnx")
    extractor = Extractor.of(run)
    with tempfile.TemporaryDirectory(prefix="maskreid-page-") as folder:
        opened = Gallery.open(gallery or _embedded(extractor, shards, Path(folder)))
        check_model(opened, extractor)
        found = find_runtime(runtime)
        masks = _segmenter(segment_weights) if segment else None
        network = export_bytes(extractor.network.cpu(), extractor.config)
        images = write_site(out, Contents(extractor, opened, network, found, masks, most, top))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    say(f"page: {(out / 'index.html').absolute()}, {images} images, {size / 1e6:.0f} MB with all its files")


def _embedded(extractor: "Extractor", location: str | None, folder: Path) -> Path:
    """The folder, with the gallery split of the shards in it."""
    from maskreid_dist.gallery.enrol import embed_split_into
    from maskreid_dist.progress import progress_bar
    from maskreid_shards import ShardError, open_shards

    try:
        opened = open_shards(location or extractor.config.data.shards)
    except ShardError as error:
        raise UserError(f"{error}; or name others with --shards, or a --gallery") from None
    with progress_bar("embedding gallery") as progress:
        embed_split_into(folder, extractor, opened, "gallery", progress)
    return folder


def _segmenter(weights: Path | None) -> "Segmenter":
    from maskreid_dist.segmentation.pose_export import exported_pose
    from maskreid_dist.webpage.site import Segmenter

    return Segmenter(*exported_pose(weights))
