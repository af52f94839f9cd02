"""`maskreid score`: figures of embeddings that were made before, without the network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskreid_dist.cli.failures import one_line_errors
from maskreid_dist.cli.figures import Found, Protocol, publish
from maskreid_dist.cli.options import (
    Ap,
    AsJson,
    CameraIds,
    CameraPairs,
    DistancesOn,
    ExpandAlpha,
    ExpandQueries,
    FiguresFile,
    Intervals,
    MultipleQuery,
    ReRank,
    ReRankIndex,
    ReRankK1,
    ReRankK2,
    ReRankPower,
    ReRankWeight,
    SingleShot,
    SingleShotSeed,
    Verification,
    expansion,
    re_ranking,
)
from maskreid_dist.cli.ranks import ranking_on, share_work
from maskreid_dist.terminal import Terminal

if TYPE_CHECKING:
    from maskreid_dist.evaluation.ranks import Ranks


@one_line_errors
def score(
    query: Annotated[Path, typer.Argument(help="Gallery folder with the queries.", show_default=False)],
    gallery: Annotated[
        Path,
        typer.Argument(
            help="Folder of a gallery; the queries' own: each image is a query among the others.",
            show_default=False,
        ),
    ],
    ap: Ap = "hits",
    output: FiguresFile = None,
    cameras: CameraIds = "labels",
    intervals: Intervals = False,
    multiple_query: MultipleQuery = False,
    single_shot: SingleShot = 0,
    single_shot_seed: SingleShotSeed = 0,
    camera_pairs: CameraPairs = False,
    verification: Verification = False,
    rerank: ReRank = False,
    k1: ReRankK1 = 20,
    k2: ReRankK2 = 6,
    weight: ReRankWeight = 0.3,
    power: ReRankPower = "squared",
    index: ReRankIndex = "exact",
    expand: ExpandQueries = 0,
    alpha: ExpandAlpha = 3.0,
    distances_on: DistancesOn = "cpu",
    as_json: AsJson = False,
) -> None:
    """Evaluate embeddings that were made before: CMC, mAP (both definitions), mINP."""

    def work(ranks: "Ranks") -> None:
        from maskreid_dist.evaluation.extras import Extras
        from maskreid_dist.files import check_writable

        if output and ranks.is_first:
            check_writable(output)
        protocol = Protocol(
            ap,
            cameras,
            Extras(intervals, multiple_query, single_shot, single_shot_seed, camera_pairs, verification),
            re_ranking(k1, k2, weight, power, index) if rerank else None,
            expansion(expand, alpha),
        )
        _score((query, gallery), protocol, ranking_on(ranks, distances_on), as_json, output)

    share_work(work)


def _score(
    folders: tuple[Path, Path], protocol: Protocol, ranks: "Ranks", as_json: bool, output: Path | None
) -> None:
    """All ranks rank and re-rank; other protocols are rank 0's."""
    from maskreid_dist.evaluation.extras import extra_figures
    from maskreid_dist.evaluation.labels import check_labels
    from maskreid_dist.evaluation.refined import refined
    from maskreid_dist.gallery import Gallery
    from maskreid_dist.gallery.score import gallery_labels, rank_galleries

    query, gallery = sides = [Gallery.open(folder) for folder in folders]
    if ranks.size > 1:
        held = {
            f"the {name}": (side.fingerprint, f"{side.fingerprint} ({side.folder})")
            for name, side in zip(("queries", "gallery"), sides, strict=True)
        }
        ranks.agree(held | {name: (value, value) for name, value in protocol.options.items()})
    labels = gallery_labels(query, gallery, protocol.cameras)
    protocol.check(alone=f"{gallery.folder} twice" if labels.alone else "")
    check_labels(labels)
    ranked = rank_galleries(query, gallery, labels, protocol.ap, ranks)
    rows = refined(ranked, labels, protocol.ap, protocol.rerank, protocol.expand, ranks)
    if not ranks.is_first:
        return
    extras = extra_figures(ranked, labels, protocol.extras, protocol.ap, protocol.rerank)
    found = Found(ranked, rows, extras, others_of=str(gallery.folder) if labels.alone else "")
    publish(found, protocol, Terminal(quiet=as_json), as_json, output)
