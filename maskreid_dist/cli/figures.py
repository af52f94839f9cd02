"""What `maskreid evaluate` and `score` share: how a gallery is ranked, and what is printed and written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from maskreid_dist.errors import UserError
from maskreid_dist.terminal import Terminal, say_json

if TYPE_CHECKING:
    from maskreid_dist.evaluation.evaluate import Ranked
    from maskreid_dist.evaluation.extras import Extras, Figures
    from maskreid_dist.evaluation.labels import Cameras
    from maskreid_dist.retrieval import Expansion, ReRanking, RetrievalResult
    from maskreid_dist.retrieval.result import ApName


@dataclass(frozen=True)
class Protocol:
    """How a gallery is ranked, whosever it is. rerank, expand: None, not asked for."""

    ap: "ApName"
    cameras: "Cameras"
    extras: "Extras"
    rerank: "ReRanking | None"
    expand: "Expansion | None"

    def check(self, alone: str) -> None:
        """Raise UserError for options that exclude each other. alone: what makes the gallery the queries'
        own images; empty: it is apart from them."""
        if self.cameras == "none" and (self.extras.multiple_query or self.extras.camera_pairs):
            raise UserError("--multiple-query and --camera-pairs need camera ids: leave out --cameras none")
        if alone and (self.rerank or self.expand):
            # A query's own image would be its nearest neighbour, twice.
            raise UserError(
                f"--rerank and --expand-queries need a gallery apart from the queries: not {alone}"
            )

    @property
    def options(self) -> dict[str, str]:
        """Those that all ranks have to be given alike, by flag."""
        asked = {"--ap": self.ap, "--cameras": self.cameras}
        return asked | {"--rerank": str(self.rerank), "--expand-queries": str(self.expand)}


@dataclass(frozen=True)
class Found:
    """refined: what is asked for besides, by name: the same features ranked otherwise, features of worse
    masks; extras: of other protocols; growth: by size of the gallery. others_of: the name of the images of
    which each was a query among the others; empty: the gallery is apart. warnings: lines. camera: what one is
    called."""

    ranked: "Ranked"
    refined: "Mapping[str, Ranked]"
    extras: "Figures"
    growth: "Mapping[int, RetrievalResult]" = field(default_factory=dict)
    others_of: str = ""
    warnings: Sequence[str] = ()
    camera: Callable[[int], str] = str


def publish(found: Found, protocol: Protocol, console: Terminal, as_json: bool, output: Path | None) -> None:
    """Print the figures, as JSON or for people, and write them to `output`."""
    from maskreid_dist.evaluation.evaluate import write_json

    figures = _figures(found, protocol)
    if as_json:
        say_json(figures)
    else:
        _print(found, protocol, console)
    if output:
        write_json(output, figures)
        console.print(f"figures: {output.absolute()}", soft_wrap=True, highlight=False)


def _print(found: Found, protocol: Protocol, console: Terminal) -> None:
    from maskreid_dist.evaluation.evaluate import print_table
    from maskreid_dist.evaluation.extras import extra_lines

    result = found.ranked.result
    print_table(console, [found.ranked, *found.refined.values()])
    elsewhere = "match in another camera" if protocol.cameras == "labels" else "other image of the person"
    console.print(f"{result.valid_queries} valid queries, {result.skipped_queries} skipped (no {elsewhere})")
    if found.others_of:
        line = f"each image of {found.others_of} was a query among the others"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if protocol.cameras == "none":
        console.print("without cameras: only the query's own image was left out of its list, by its key")
    for line in found.warnings:
        console.print(f"warning: {line}", highlight=False, markup=False)
    for size, grew in found.growth.items():
        figures = f"mAP {100 * grew.mAP:.2f} (AP by {grew.ap}), Rank-1 {100 * grew.rank(1):.2f}"
        console.print(f"gallery of {size} images: {figures}", highlight=False)
    for line in extra_lines(found.extras, protocol.ap, found.camera):
        console.print(line, highlight=False, markup=False)


def _figures(found: Found, protocol: Protocol) -> dict[str, object]:
    from maskreid_dist.evaluation.evaluate import percentages

    figures: dict[str, object] = {"unit": "percent", "cameras": protocol.cameras}
    if found.others_of:
        figures["each_against_the_others_of"] = found.others_of
    figures |= percentages(found.ranked.result)
    figures["valid_queries"] = int(found.ranked.result.valid_queries)
    figures["skipped_queries"] = int(found.ranked.result.skipped_queries)
    figures |= {key: percentages(row.result) for key, row in found.refined.items()}
    if found.growth:
        figures["gallery_size"] = {size: percentages(grew) for size, grew in found.growth.items()}
    return {**figures, **found.extras}
