"""Who is on the images of queries and gallery, and by which cameras images are left out of a list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from maskreid_dist.retrieval import RetrievalError, evaluate_retrieval
from maskreid_dist.retrieval.protocols import cameras_of_keys
from maskreid_shards import ShardSet

Cameras = Literal["labels", "none"]
Numbers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labels:
    """(pids, camids) of the queries, (Q,) each, and of the gallery, (G,) each.

    cameras "none": camera ids are passed over; camids stand for keys, so that of a query's identity only its
    own image is left out. alone: the gallery's images are the queries, in their order.
    """

    query: tuple[Numbers, Numbers]
    gallery: tuple[Numbers, Numbers]
    cameras: Cameras = "labels"
    alone: bool = False

    @property
    def queries(self) -> int:
        return len(self.query[0])

    @property
    def images(self) -> int:
        """Of the gallery."""
        return len(self.gallery[0])


def split_labels(shards: ShardSet, cameras: Cameras) -> Labels:
    """Of the splits query and gallery."""
    query, gallery = shards.split("query"), shards.split("gallery")
    found = Labels((query.pids, query.camids), (gallery.pids, gallery.camids), alone=query is gallery)
    return without_cameras(found, query.keys, gallery.keys) if cameras == "none" else found


def without_cameras(
    labels: Labels,
    query_keys: NDArray[np.bytes_] | Sequence[str],
    gallery_keys: NDArray[np.bytes_] | Sequence[str],
) -> Labels:
    """The same with `cameras` "none"."""
    camids = cameras_of_keys(np.asarray(query_keys), np.asarray(gallery_keys))
    return Labels((labels.query[0], camids[0]), (labels.gallery[0], camids[1]), "none", labels.alone)


def check_labels(labels: Labels) -> None:
    """Raise before the long work what evaluation would raise after it: no valid query."""
    seen: dict[int, set[int]] = {}
    for pid, camid in zip(*(ids.tolist() for ids in labels.gallery), strict=True):
        seen.setdefault(pid, set()).add(camid)
    pairs = zip(*(ids.tolist() for ids in labels.query), strict=True)
    if any(seen.get(pid, set()) - {camid} for pid, camid in pairs):
        return
    if labels.cameras == "none":
        raise RetrievalError("no query has a match: the gallery holds no other image of any query's person")
    empty = [np.ones((images, 1), np.float32) for images in (labels.queries, labels.images)]
    try:
        evaluate_retrieval(empty[0], *labels.query, empty[1], *labels.gallery)  # says why no query is valid
    except RetrievalError as error:
        if len(np.unique(np.concatenate([labels.query[1], labels.gallery[1]]))) > 1:
            raise
        raise RetrievalError(f"{error}; for images without camera ids there is --cameras none") from None


@dataclass(frozen=True, eq=False)
class AllImages:
    """Of N images: features (N, D), pids and camids (N,)."""

    features: NDArray[np.float32]
    pids: Numbers
    camids: Numbers


def all_images(query: NDArray[np.float32], gallery: NDArray[np.float32], labels: Labels) -> AllImages:
    """Of queries and gallery together, from the features (Q, D) and (G, D); each once where the gallery's
    images are the queries. Without cameras all camids are 0, so that any two images are a pair."""
    count = 1 if labels.alone else 2
    pids, camids = (np.concatenate(ids[:count]) for ids in zip(labels.query, labels.gallery, strict=True))
    return AllImages(
        np.concatenate([query, gallery][:count]),
        pids,
        np.zeros_like(camids) if labels.cameras == "none" else camids,
    )
