"""Queries and a gallery on disk, ranked without the network that embedded them."""

from maskreid_dist.errors import UserError
from maskreid_dist.evaluation.evaluate import Ranked, own_sides
from maskreid_dist.evaluation.labels import Cameras, Labels, without_cameras
from maskreid_dist.evaluation.ranks import Ranks
from maskreid_dist.gallery.store import Gallery
from maskreid_dist.retrieval import evaluate_retrieval
from maskreid_dist.retrieval.result import ApName


def gallery_labels(query: Gallery, gallery: Gallery, cameras: Cameras) -> Labels:
    """Of what was not taken out. A gallery beside itself, or its copy, has each image once. Raises UserError
    for galleries of two networks."""
    if query.model != gallery.model:
        raise UserError(
            f"{query.folder} is of {query.model}, {gallery.folder} of {gallery.model}: not comparable"
        )
    alone = len(query) == len(gallery) and query.fingerprint == gallery.fingerprint
    sides = [(side.pids[side.alive], side.camids[side.alive]) for side in (query, gallery)]
    labels = Labels(sides[0], sides[1], alone=alone)
    return without_cameras(labels, _keys(query), _keys(gallery)) if cameras == "none" else labels


def rank_galleries(query: Gallery, gallery: Gallery, labels: Labels, ap: ApName, ranks: Ranks) -> Ranked:
    """All of `ranks` take part: each has all queries and the figures of one process, and rank 0 the whole
    gallery, others their `Ranks.rows` of it."""
    features, own = query.living(slice(None)), ranks.rows(labels.images)
    held = gallery.living(slice(None) if ranks.is_first else own)
    sides = own_sides(features, held[own] if ranks.is_first else held, labels, ranks)
    result = evaluate_retrieval(*sides, ap=ap, group=ranks.group)
    return Ranked(f"{query.model.name}, step {query.model.step}", features, held, result)


def _keys(gallery: Gallery) -> list[str]:
    return [key for key, alive in zip(gallery.keys, gallery.alive, strict=True) if alive]
