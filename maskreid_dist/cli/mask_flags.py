"""The options about masks that `convert` and `segment` have in common, and what they mean together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from maskreid_dist.errors import UserError
from maskreid_dist.progress import progress_bar
from maskreid_shards import Layout, MaskOptions

Model = Literal["pose", "deeplabv3_resnet50", "fcn_resnet50", "maskrcnn_resnet50"]

Masks = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|PATTERN",
        help="Masks: a folder that mirrors the data set (same stem, .png), or a pattern with {folder}, "
        "{stem}, {name}, {split}, {pid}, {camid}, such as {split}_seg/{pid}/{stem}_mask.png. Default: "
        "sibling folders <folder>_seg. With --segment: where the made "
        "masks go, default OUT-masks.",
    ),
]
MaskKind = Annotated[
    Literal["soft", "label", "parsing"] | None,
    typer.Option(
        help="Pixels are grey (soft, 255 = person), labels (see --person-label), or a parsing (above 0 = "
        "person). Default: soft."
    ),
]
PersonLabels = Annotated[
    list[int] | None,
    typer.Option("--person-label", help="Pixel value that is person in a label map; repeatable."),
]
InvertMasks = Annotated[bool, typer.Option("--invert-masks", help="What the mask leaves out is the person.")]
OnOrientation = Annotated[
    Literal["fail", "transpose", "ignore"],
    typer.Option(
        help="An image with an EXIF orientation: stop, store it upright (as PNG), or as it lies. Masks are "
        "made and expected for what is stored."
    ),
]
OnBadImage = Annotated[
    Literal["fail", "skip"],
    typer.Option(
        help="An image that is missing, unreadable or no picture for a shard: stop and name all of them, "
        "or leave it out and count it."
    ),
]
FollowLinks = Annotated[
    bool,
    typer.Option(
        "--follow-links",
        help="Read images and masks that are links out of the data set's folder: only of a data set that you "
        "trust.",
    ),
]
Segment = Annotated[Model | None, typer.Option(help="Make the masks with this network; resumable.")]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--segment-weights",
        help="Weights. Default: the published ones, from torch.hub's cache or the network.",
    ),
]
Device = Annotated[str, typer.Option("--segment-device", help="auto, cpu, cuda or cuda:N.")]
Batch = Annotated[int, typer.Option("--segment-batch", min=1, help="Images a batch of the network.")]
HEIGHT_HELP = "Pixels that crops are brought to: 512 of height; for pose 192, its square's side."
Height = Annotated[int | None, typer.Option("--segment-height", min=64, help=HEIGHT_HELP, show_default=False)]
LandmarksToo = Annotated[
    bool,
    typer.Option(
        "--landmarks",
        help="Also 33 points of the body with their visibility (pose), for the json members.",
    ),
]
PixelHeight = Annotated[int | None, typer.Option("--height", min=64, help=HEIGHT_HELP, show_default=False)]


@dataclass(frozen=True)
class MaskFlags:
    """The values of the options above, as given."""

    masks: str | None = None
    mask_kind: Literal["soft", "label", "parsing"] | None = None
    person_labels: tuple[int, ...] = ()
    invert_masks: bool = False
    segment: Model | None = None
    segment_weights: Path | None = None
    segment_device: str = "auto"
    segment_batch: int = 16
    segment_height: int | None = None
    landmarks: bool = False

    def options(self, out: Path) -> MaskOptions:
        """What `convert` is told; nothing is made yet.

        Raises UserError: options that contradict each other. ShardError: see MaskOptions.
        """
        if self.segment is None:
            if self.segment_weights is not None:
                raise UserError(
                    "--segment-weights without --segment: name the network, such as --segment pose"
                )
            kind = self.mask_kind or ("label" if self.person_labels else "soft")
            if self.landmarks and self.masks is None:
                raise UserError(
                    "--landmarks: they lie beside made masks; make some (--segment pose), or name their "
                    "folder (--masks)"
                )
            return MaskOptions(self.masks, kind, self.person_labels, self.invert_masks, self.landmarks)
        if self.mask_kind or self.person_labels or self.invert_masks:
            raise UserError(
                "--segment makes soft masks: leave out --mask-kind, --person-label and --invert-masks"
            )
        if self.masks is not None and "{" in self.masks:
            raise UserError(
                f"--masks {self.masks}: with --segment this is the folder for the masks, without fields"
            )
        location = self.masks or str(out.with_name(f"{out.name}-masks"))
        return MaskOptions(location, landmarks=self.landmarks, made=True)

    def make(
        self,
        layout: Layout,
        options: MaskOptions,
        on_orientation: Literal["fail", "transpose", "ignore"] = "fail",
        on_bad_image: Literal["fail", "skip"] = "fail",
        follow_links: bool = False,
    ) -> list[str]:
        """Segment what has no mask yet, if that was asked for; returns the report's lines."""
        if self.segment is None or options.location is None:
            return []
        from maskreid_dist.segmentation.masks import segment

        with progress_bar("segmenting") as progress:
            report = segment(
                layout,
                Path(options.location),
                model=self.segment,
                weights=self.segment_weights,
                device=self.segment_device,
                batch_size=self.segment_batch,
                input_height=self.segment_height,
                landmarks=self.landmarks,
                on_orientation=on_orientation,
                on_bad_image=on_bad_image,
                follow_links=follow_links,
                progress=progress,
            )
        return report.lines()
