"""Ranked lists of chosen queries, with their pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from maskreid_dist.data.transforms import cut_out
from maskreid_dist.evaluation.evaluate import Ranked
from maskreid_dist.evaluation.labels import Labels
from maskreid_dist.report import RankedImage, RankedQuery, select_queries
from maskreid_dist.retrieval import RankList, rank_list
from maskreid_shards import MaskQuality, ShardSet, SourceNames, Split, decode_pair

TOP = 10


def chosen_queries(
    shown: Ranked, labels: Labels, names: SourceNames, each: int, most: int
) -> dict[str, list[int]]:
    """Rows by heading: of all queries, then, up to `most` in all, one of each kind of every camera, where
    there are camera ids; a row once."""
    ap, (pids, camids) = shown.result.average_precision, labels.query
    chosen = select_queries(ap, pids, each=each)
    seen = {row for rows in chosen.values() for row in rows}
    for camera in np.unique(camids).tolist() if labels.cameras == "labels" else ():
        own = select_queries(np.where(camids == camera, ap, np.nan), pids, each=1)
        for heading, rows in own.items():
            new = [row for row in rows if row not in seen and len(seen) < most]
            seen.update(new)
            if new:
                chosen[f"{heading} of camera {names.camera(camera)}"] = new
    return chosen


def ranked_queries(
    shown: Ranked, shards: ShardSet, labels: Labels, chosen: Mapping[str, Sequence[int]]
) -> list[RankedQuery]:
    """The lists of the chosen rows, by heading, in that order."""
    rows = [(heading, row) for heading, numbers in chosen.items() for row in numbers]
    first_Q = shown.result.first_rank
    return [
        _ranked_query(heading, row, found, shown, shards, int(first_Q[row]))
        for (heading, row), found in zip(rows, _lists(shown, labels, [row for _, row in rows]), strict=True)
    ]


def _lists(shown: Ranked, labels: Labels, rows: Sequence[int]) -> list[RankList]:
    """Each as long as its first true match asks."""
    top = max([TOP, *(int(shown.result.first_rank[row]) for row in rows)])
    sides = shown.query, *labels.query, shown.gallery, *labels.gallery
    return rank_list(*sides, queries=rows, top=top)


def _ranked_query(
    heading: str, row: int, found: RankList, shown: Ranked, shards: ShardSet, first: int
) -> RankedQuery:
    gallery, names = shards.split("gallery"), shards.names
    raw = shards.split("query").read(row)
    image, mask = decode_pair(raw)
    places = [*range(min(TOP, len(found.gallery_index))), *([first - 1] if first > TOP else [])]
    ranked = tuple(_ranked_image(gallery, names, found, place) for place in places)
    return RankedQuery(
        heading=heading,
        image=image,
        masked=cut_out(image, mask),
        person=names.person(raw.pid),
        camera=names.camera(raw.camid),
        key=raw.key,
        average_precision=float(shown.result.average_precision[row]),
        ranked=ranked,
        first_rank=first,
        first_camera=names.camera(int(gallery.camids[found.gallery_index[first - 1]])),
        mask=mask_text(np.asarray(mask.convert("L"))),
    )


def _ranked_image(gallery: Split, names: SourceNames, found: RankList, place: int) -> RankedImage:
    raw = gallery.read(int(found.gallery_index[place]))
    distance, correct = float(found.distance[place]), bool(found.correct[place])
    who = names.person(raw.pid), names.camera(raw.camid)
    return RankedImage(decode_pair(raw)[0], distance, correct, *who, raw.key, place + 1)


def mask_text(mask_HW: NDArray[np.uint8]) -> str:
    """Its defect, and how much of the picture is person: "tiny: 3 % person"."""
    quality = MaskQuality.of(mask_HW)
    return f"{quality.defect or 'no defect'}: {100 * quality.coverage:.0f} % person"
