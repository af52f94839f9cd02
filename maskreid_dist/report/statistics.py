"""One picture of a shard folder: images per identity and images per camera, a row for each split."""

from io import BytesIO
from pathlib import Path

from maskreid_shards.atomic import write_atomically
from maskreid_shards.statistics import SplitStatistics

BLUE, ORANGE = "#2a5ea8", "#c9782b"


def statistics_figure(splits: dict[str, SplitStatistics], path: Path) -> None:
    """Write the PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 2.6 * len(splits)), dpi=110, layout="constrained")
    for (images, cameras), (name, split) in zip(
        figure.subplots(len(splits), 2, squeeze=False), splits.items(), strict=True
    ):
        images.bar(
            list(split.identities_by_images), list(split.identities_by_images.values()), width=0.9, color=BLUE
        )
        images.set_title(f"{name}: {split.identities} identities", fontsize=10)
        images.set_xlabel("images of an identity", fontsize=8)
        images.set_ylabel("identities", fontsize=8)
        numbers = [str(camid) for camid in split.images_per_camera]
        cameras.bar(numbers, list(split.images_per_camera.values()), color=ORANGE)
        cameras.set_title(f"{name}: {split.samples} images", fontsize=10)
        cameras.set_xlabel("camera", fontsize=8)
        cameras.set_ylabel("images", fontsize=8)
        images.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in (images, cameras):
            axis.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
