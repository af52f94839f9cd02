"""What fills a gallery: a split of shards, in order and resumable, or single pictures of a person."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from maskreid_dist.data.batches import evaluation_loader
from maskreid_dist.errors import SampleError, UserError
from maskreid_dist.gallery.extractor import Extractor, Picture
from maskreid_dist.gallery.journal import GalleryError
from maskreid_dist.gallery.store import MANIFEST, Gallery
from maskreid_shards import ShardSet
from maskreid_shards.shown import without_secrets


def embed_split_into(
    folder: Path,
    extractor: Extractor,
    shards: ShardSet,
    split_name: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    batch_rows: int = 128,
) -> int:
    """Every image of a split, a batch at a time; how many were there already.

    A batch is durable when the next one begins: the same call goes on where a killed one ended. Raises
    GalleryError where the folder holds something else, SampleError for a batch that cannot be read.
    """
    split = shards.split(split_name)
    source = {
        "shards": without_secrets(str(shards.location)),
        "fingerprint": shards.fingerprint,
        "split": split_name,
        "images": len(split),
    }
    with _opened(folder, extractor, source) as gallery:
        before = len(gallery)
        names = [key.decode() for key in split.keys.tolist()]
        _check_order(gallery, names)
        for batch in evaluation_loader(split, extractor.config, np.arange(before, len(split)), batch_rows):
            if isinstance(batch, SampleError):
                raise batch
            image = batch.image_B3HW.to(extractor.device, memory_format=torch.channels_last)
            with torch.inference_mode():
                rows = (
                    extractor.network(image, batch.mask_B1HW.to(extractor.device)).embedding_BD.cpu().numpy()
                )
            numbers = batch.samples_B.numpy()
            keys = [names[number] for number in numbers]
            gallery.append(rows, keys, split.pids[numbers], split.camids[numbers])
            if progress:
                progress(len(gallery), len(split))
        return before


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
