"""A conversion with everything checked that needs no file opened but a sample of the masks: what is written,
but not yet where."""

from dataclasses import dataclass
from pathlib import Path
from typing import Required, TypedDict, Unpack

from .bad_inputs import OnBadImage, check_image_policy
from .checks import check_layout
from .dealing import dealt
from .errors import ShardError
from .image_policy import OnOrientation, check_orientation_policy
from .index_limits import fit_index
from .leftovers import Leftovers, find_leftovers
from .links import check_links
from .masks.inversion import find_inverted
from .masks.maker import read_maker
from .masks.options import MaskOptions, place_masks
from .masks.policy import DEFAULT_MASKS, OnBadMask, check_policy
from .resume import ShardTask
from .samples import Layout

SHARD_BYTES = 64_000_000


class JobOptions(TypedDict, total=False):
    """What decides the bytes of a conversion, beside its layout; `convert` explains them."""

    dataset: Required[str]
    on_bad_mask: OnBadMask
    mask_options: MaskOptions
    on_orientation: OnOrientation
    on_bad_image: OnBadImage
    shard_bytes: int
    seed: int
    follow_links: bool


@dataclass(frozen=True)
class Job:
    """A checked conversion: `layout` as it is written, and what the report says beside the counts; `warnings`
    end it."""

    layout: Layout
    dataset: str
    on_bad_mask: OnBadMask
    mask_options: MaskOptions
    on_orientation: OnOrientation
    on_bad_image: OnBadImage
    shard_bytes: int
    seed: int
    maker: dict[str, str]
    odd: tuple[str, ...]
    links: tuple[str, ...]
    leftovers: Leftovers
    warnings: tuple[str, ...]

    @property
    def total(self) -> int:
        return sum(map(len, self.layout.splits.values()))

    def tasks(self, folder: Path) -> list[ShardTask]:
        """All shards, in the order of the manifest, to be written into `folder`."""
        return [
            ShardTask(
                folder,
                name,
                number,
                sources,
                self.dataset,
                self.on_bad_mask,
                self.mask_options,
                self.on_orientation,
                self.on_bad_image,
            )
            for name, number, sources in dealt(
                self.layout, self.dataset, self.shard_bytes, self.seed, made_masks=self.mask_options.made
            )
        ]


def checked_job(layout: Layout, **options: Unpack[JobOptions]) -> Job:
    """Raises ShardError: an unknown policy, a shard size below 1, a layout that nothing may be written from
    (`check_layout`), links out of the data set (`check_links`), masks that cannot be placed (`place_masks`)
    or look inverted (`find_inverted`; under
    the policy "fail", a warning under others), a note beside them that is none (`read_maker`)."""
    on_bad_mask = options.get("on_bad_mask", "fail")
    on_orientation = options.get("on_orientation", "fail")
    on_bad_image = options.get("on_bad_image", "fail")
    mask_options = options.get("mask_options", DEFAULT_MASKS)
    shard_bytes = options.get("shard_bytes", SHARD_BYTES)
    check_policy(on_bad_mask)
    check_orientation_policy(on_orientation)
    check_image_policy(on_bad_image)
    if shard_bytes < 1:
        raise ShardError(f"shard size of {shard_bytes} bytes: give at least 1")
    layout = place_masks(layout, mask_options)
    odd = check_layout(layout)
    layout = fit_index(layout)
    links = check_links(layout, mask_options, follow=options.get("follow_links", False))
    inverted = find_inverted(layout, mask_options)
    if inverted is not None and on_bad_mask == "fail":
        raise ShardError(f"{inverted}; if they are right, choose --on-bad-mask skip or full")
    return Job(
        layout,
        options["dataset"],
        on_bad_mask,
        mask_options,
        on_orientation,
        on_bad_image,
        shard_bytes,
        options.get("seed", 0),
        read_maker(mask_options.location),
        tuple(odd),
        tuple(links),
        find_leftovers(layout),
        (f"MOST MASKS LOOK INVERTED: {inverted}",) if inverted is not None else (),
    )
