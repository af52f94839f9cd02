"""A search as a table and as a page: the nearest gallery images of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from maskreid_dist.data.transforms import cut_out
from maskreid_dist.errors import SampleError
from maskreid_dist.gallery.enrol import check_model
from maskreid_dist.gallery.extractor import Extractor, as_image
from maskreid_dist.gallery.journal import GalleryError
from maskreid_dist.gallery.store import Gallery
from maskreid_dist.report.search_page import FoundImage, SearchedImage, write_search_page
from maskreid_dist.retrieval.faiss_lists import index_text
from maskreid_shards import ShardError, SourceNames, Split, decode_pair, open_shards
from maskreid_shards.manifest import read_manifest


@dataclass(frozen=True)
class Match:
    """row: of the gallery; person, camera: with the names that its shards know; similarity: cosine, 1 for the
    same picture; probability: of one person, if it was one half before looking (None: the network is not
    calibrated)."""

    row: int
    key: str
    pid: int
    camid: int
    person: str
    camera: str
    similarity: float
    probability: float | None = None


def search(
    extractor: Extractor,
    gallery: Gallery,
    pictures: Sequence[Path],
    masks: Sequence[Path] | None,
    top: int,
    index: str = "exact",
) -> list[list[Match]]:
    """The `top` nearest images of every picture, nearest first; index: as for `Gallery.search`. Raises
    GalleryError: another network, empty."""
    check_model(gallery, extractor)
    if not gallery.alive.any():
        raise GalleryError(f"{gallery.folder}: nobody is in it; maskreid embed or enrol fills it")
    found = gallery.search(extractor(pictures, masks), top, index=index)
    pids, camids, names = gallery.pids, gallery.camids, names_of(gallery)

    def match(row: int, similarity: float) -> Match:
        known = extractor.calibration
        probability = known.probability(similarity) if known else None
        pid, camid = int(pids[row]), int(camids[row])
        who = names.pid(pid), names.camera(camid)
        return Match(row, gallery.keys[row], pid, camid, *who, similarity, probability)

    return [
        [match(int(row), 1.0 - float(distance)) for row, distance in zip(rows, distances, strict=True)]
        for rows, distances in zip(found.index_QK, found.distance_QK, strict=True)
    ]


def write_page(
    path: Path,
    extractor: Extractor,
    gallery: Gallery,
    pictures: Sequence[Path],
    masks: Sequence[Path] | None,
    matches: Sequence[Sequence[Match]],
    index: str = "exact",
) -> None:
    """The matches with pictures, where they are still at hand. index: that they were found by."""
    split = split_of(gallery)
    searched = []
    for number, (picture, found) in enumerate(zip(pictures, matches, strict=True)):
        image, mask = extractor.pair(picture, masks[number] if masks else None)
        whole, person = to_pil_image(image), to_pil_image(mask)
        shown = tuple(
            FoundImage(
                picture_of(gallery, split, match.row),
                match.key,
                f"person {match.person}",
                match.camera,
                match.similarity,
                match.probability,
            )
            for match in found
        )
        searched.append(SearchedImage(str(picture), whole, cut_out(whole, person), shown))
    people = int(gallery.alive.sum())
    facts = (
        f"{people} images in {gallery.folder.absolute()}; {gallery.model}; numbers are cosine similarities"
    )
    facts += f"; {index_text(index)}" if index != "exact" else ""
    write_search_page(path, "MaskReID: search", facts, searched)


def names_of(gallery: Gallery) -> SourceNames:
    """Of the shards it was made from, if they lie in a folder here and are unchanged."""
    if gallery.source:
        try:
            manifest = read_manifest(Path(gallery.source["shards"]))
            if manifest.fingerprint == gallery.source["fingerprint"]:
                return SourceNames.of(manifest.numbering)
        except (ShardError, KeyError):
            pass
    return SourceNames()


def split_of(gallery: Gallery) -> Split | None:
    """The shards the gallery was made from, if they are where they were and unchanged."""
    if not gallery.source:
        return None
    try:
        shards = open_shards(gallery.source["shards"])
        return (
            shards.split(gallery.source["split"])
            if shards.fingerprint == gallery.source["fingerprint"]
            else None
        )
    except (ShardError, KeyError):
        return None


def picture_of(gallery: Gallery, split: Split | None, row: int) -> Image.Image | None:
    """A row's picture, from its file or from the shards; None where it is not at hand any more."""
    try:
        if source := gallery.sources[row]:
            image: Image.Image = to_pil_image(as_image(Path(source), source))
            return image
        return decode_pair(split.read(row))[0] if split else None
    except (SampleError, ShardError):
        return None
