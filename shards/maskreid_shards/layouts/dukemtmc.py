"""DukeMTMC-reID: Market-1501's folders, other names, no junk, no distractors marked as such."""

import re
from pathlib import Path

from ..samples import Layout
from .images import sources
from .named import FOLDERS, scan_named
from .published import with_published

NAME = re.compile(r"^(\d{4})_c([1-8])_f\d{7}\.jpg$", re.ASCII)
FORM = "0001_c2_f0046182.jpg (<pid>_c<camera>_f<frame>.jpg)"
NAMES = ("dukemtmcreid", "dukemtmc")
PUBLISHED = {
    "train images": 16522,
    "train identities": 702,
    "query images": 2228,
    "query identities": 702,
    "gallery images": 17661,
    "gallery identities": 702 + 408,
}


def scan_dukemtmc(src: Path) -> Layout:
    """Find every image of a DukeMTMC-reID folder. Its 408 distractor identities are ordinary ones of the
    gallery.

    Raises ShardError as `scan_market1501` does.
    """
    found, strays = scan_named(src, FOLDERS, NAME, FORM)
    splits = {split: sources(src, split, images) for split, images in found.items()}
    note = "DukeMTMC was withdrawn by its authors in 2019; check that you may use it"
    layout = Layout("dukemtmc", splits, strays, notes=(note,), searched=(src,), roots=(src,))
    return with_published(layout, src, NAMES, PUBLISHED)
