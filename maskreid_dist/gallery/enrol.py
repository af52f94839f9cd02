"""What fills a gallery: a split of shards, in order and resumable, or single pictures of a person."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from maskreid_dist.data.batches import batches_of
from maskreid_dist.errors import SampleError, UserError
from maskreid_dist.evaluation.ranks import Ranks
from maskreid_dist.gallery.extractor import Extractor, Picture
from maskreid_dist.gallery.journal import GalleryError
from maskreid_dist.gallery.pieces import (
    Piece,
    begin_pieces,
    is_seen,
    missing_pieces,
    pieces_of,
    read_piece,
    remove_pieces,
    write_piece,
)
from maskreid_dist.gallery.store import MANIFEST, Gallery
from maskreid_shards import ShardSet, Split
from maskreid_shards.shown import without_secrets


def embed_split_into(
    folder: Path,
    extractor: Extractor,
    shards: ShardSet,
    split_name: str,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks | None = None,
) -> int:
    """Every image of a split, a batch at a time; how many were there already. All of `ranks` take part.

    A batch is durable when the next one begins: the same call goes on where a killed one ended, with any
    number of ranks; what it makes is the same, byte by byte. Raises GalleryError where the folder holds
    something else, SampleError for a batch that cannot be read, UserError on a rank that sees another folder.
    """
    ranks = ranks or Ranks()
    split = shards.split(split_name)
    with ExitStack() as stack:
        gallery, plan = None, None
        if ranks.is_first:
            gallery = stack.enter_context(_opened(folder, extractor, _source(shards, split)))
            _check_order(gallery, _names(split))
            plan = _planned(gallery, len(split), ranks.batch_rows, shared=ranks.size > 1)
        before, seen, missing = ranks.from_first(plan)
        if seen and not is_seen(folder, seen):
            raise UserError(
                f"{folder}: is not the folder that rank 0 writes; name one that all machines share"
            )
        own = [Piece(*piece) for piece in missing][ranks.share(len(missing))]
        made = _embedded(extractor, split, own)
        if ranks.size > 1:
            done = 0
            for piece, rows in made:
                write_piece(folder, piece, rows)
                done += piece.rows
                _show(progress, before + ranks.count("embedding", done), split)
            ranks.wait()
        if gallery is not None:
            _append(gallery, split, ranks.batch_rows, made, None if ranks.size > 1 else progress)
        return int(before)


def _source(shards: ShardSet, split: Split) -> dict[str, object]:
    return {
        "shards": without_secrets(str(shards.location)),
        "fingerprint": shards.fingerprint,
        "split": split.name,
        "images": len(split),
    }


def _names(split: Split) -> list[str]:
    return [key.decode() for key in split.keys.tolist()]


def _planned(
    gallery: Gallery, images: int, batch_rows: int, shared: bool
) -> tuple[int, str, list[tuple[int, int]]]:
    """How many images are embedded already, how to know the folder, and the pieces that are missing."""
    pieces = pieces_of(len(gallery), images, batch_rows)
    missing = missing_pieces(gallery.folder, pieces, gallery.dimensions)
    seen = begin_pieces(gallery.folder) if shared and missing else ""
    before = images - sum(piece.rows for piece in missing)
    return before, seen, [(piece.first, piece.rows) for piece in missing]


def _embedded(
    extractor: Extractor, split: Split, pieces: Sequence[Piece]
) -> Iterator[tuple[Piece, NDArray[np.float32]]]:
    batches = batches_of(split, extractor.config, [piece.numbers for piece in pieces])
    for piece, batch in zip(pieces, batches, strict=True):
        if isinstance(batch, SampleError):
            raise batch
        image = batch.image_B3HW.to(extractor.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            output = extractor.network(image, batch.mask_B1HW.to(extractor.device))
        yield piece, output.embedding_BD.cpu().numpy()


def _append(
    gallery: Gallery,
    split: Split,
    batch_rows: int,
    made: Iterator[tuple[Piece, NDArray[np.float32]]],
    progress: Callable[[int, int], None] | None,
) -> None:
    """The pieces in order: those in files, and those that are made now."""
    names = _names(split)
    for piece in pieces_of(len(gallery), len(split), batch_rows):
        rows = read_piece(gallery.folder, piece, gallery.dimensions)
        if rows is None:
            of, rows = next(made, (None, None))
            if of != piece or rows is None:
                path = piece.path(gallery.folder)
                raise GalleryError(f"{path}: has gone since it was written; the same command goes on")
        keys = [names[number] for number in piece.numbers]
        gallery.append(rows, keys, split.pids[piece.numbers], split.camids[piece.numbers])
        _show(progress, len(gallery), split)
    remove_pieces(gallery.folder)


def _show(progress: Callable[[int, int], None] | None, done: int, split: Split) -> None:
    if progress:
        progress(done, len(split))


def enrol(
    folder: Path,
    extractor: Extractor,
    pictures: Sequence[Path],
    masks: Sequence[Picture] | None,
    *,
    pid: int,
    camid: int,
) -> int:
    """Pictures of one person into a gallery, which is made where there is none; how many it holds then.

    A picture's key is its name without suffix, its person before it: 12/IMG_004. Nothing is kept if one of
    them is bad.
    """
    if pid < 0:
        raise UserError(f"person {pid}: a number of at least 0 names a person")
    rows = extractor(pictures, masks)
    keys = [f"{pid}/{path.stem}" for path in pictures]
    with _opened(folder, extractor, None) as gallery:
        sources = [str(path.absolute()) for path in pictures]
        gallery.append(rows, keys, [pid] * len(keys), [camid] * len(keys), sources)
        return int(gallery.alive.sum())


def _opened(folder: Path, extractor: Extractor, source: dict[str, object] | None) -> Gallery:
    """For writing, of this network and, where one is named, this source."""
    if not (folder / MANIFEST).exists():
        return Gallery.create(folder, extractor.dimensions, extractor.model, source)
    gallery = Gallery.open(folder, writing=True)
    try:
        check_model(gallery, extractor)
        if source is not None and gallery.source != source:
            raise GalleryError(f"{folder}: holds embeddings of something else; choose another folder")
    except BaseException:
        gallery.close()
        raise
    return gallery


def check_model(gallery: Gallery, extractor: Extractor) -> None:
    """Raise GalleryError unless this network made the gallery's rows."""
    if gallery.model.weights_sha256 != extractor.model.weights_sha256:
        raise GalleryError(
            f"{gallery.folder}: made by another network ({gallery.model}, not {extractor.model}); "
            "embeddings of two networks cannot be compared"
        )


def _check_order(gallery: Gallery, keys: Sequence[str]) -> None:
    held = list(gallery.keys)
    if held != list(keys[: len(held)]) or not gallery.alive.all():
        raise GalleryError(
            f"{gallery.folder}: was changed after it was made; choose another folder for the whole split"
        )
