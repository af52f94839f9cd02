"""Checks of features and labels: every refusal is a ValueError of one line that names the argument."""

import warnings
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.retrieval.distance import METRICS, Metric, row_norms

Features: TypeAlias = NDArray[np.floating] | Tensor
Ids: TypeAlias = NDArray[np.integer] | Tensor | list[int]
Side = Literal["query", "gallery"]

_LARGEST_NORM = 1e150  # squares of sums of two norms stay finite in float64


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Queries or (this rank's) gallery: features (N, D), norms (N,) float64, pids and camids (N,) int64."""

    features: Tensor
    norms: Tensor
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pids)


def part(images: ImageSet, start: int, stop: int, device: torch.device | None = None) -> ImageSet:
    """Images start to stop - 1, their rows on `device` if one is given."""
    return ImageSet(
        features=images.features[start:stop].to(device or images.features.device),
        norms=images.norms[start:stop].to(device or images.norms.device),
        pids=images.pids[start:stop],
        camids=images.camids[start:stop],
    )


def chosen(images: ImageSet, rows: NDArray[np.int64]) -> ImageSet:
    """These images, in this order."""
    at = torch.from_numpy(rows).to(images.features.device)
    return ImageSet(images.features[at], images.norms[at], images.pids[rows], images.camids[rows])


def unlabelled(first: ImageSet, second: ImageSet) -> ImageSet:
    """The images of both as those of one nameless identity, so that none is junk; on the first's device."""
    device = first.features.device
    dtype = torch.promote_types(first.features.dtype, second.features.dtype)
    ids = np.zeros(len(first) + len(second), np.int64)
    return ImageSet(
        features=torch.cat([first.features.to(dtype), second.features.to(device, dtype)]),
        norms=torch.cat([first.norms, second.norms.to(device)]),
        pids=ids,
        camids=ids,
    )


def image_set(side: Side, features: Features, pids: Ids, camids: Ids, *, metric: Metric) -> ImageSet:
    """Check one side of the comparison and compute its row norms."""
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is unknown: choose one of {', '.join(METRICS)}")
    feat_ND = _features(side, features)
    norms_N = row_norms(feat_ND)
    broken = (~(norms_N < _LARGEST_NORM)).nonzero().flatten()  # NaN fails the comparison too
    if len(broken):
        raise ValueError(
            f"{side} features: {len(broken)} of {len(feat_ND)} rows hold NaN, infinite or overflowing "
            f"values, first row {int(broken[0])}"
        )
    return ImageSet(
        features=feat_ND,
        norms=norms_N,
        pids=_ids(f"{side}_pids", pids, len(feat_ND)),
        camids=_ids(f"{side}_camids", camids, len(feat_ND)),
    )


def both_sides(
    query: Features,
    query_pids: Ids,
    query_camids: Ids,
    gallery: Features,
    gallery_pids: Ids,
    gallery_camids: Ids,
    *,
    metric: Metric,
) -> tuple[ImageSet, ImageSet]:
    """Check queries and gallery, which must be embedded by the same network."""
    query_set = image_set("query", query, query_pids, query_camids, metric=metric)
    gallery_set = image_set("gallery", gallery, gallery_pids, gallery_camids, metric=metric)
    check_widths(query_set, gallery_set)
    return query_set, gallery_set


def check_widths(query: ImageSet, gallery: ImageSet) -> None:
    """Raise ValueError unless both sides have as many columns."""
    columns, gallery_columns = query.features.shape[1], gallery.features.shape[1]
    if columns != gallery_columns:
        raise ValueError(f"query features have {columns} columns, gallery features {gallery_columns}")


def _features(side: Side, values: Features) -> Tensor:
    try:
        tensor = values.detach() if isinstance(values, Tensor) else _shared_tensor(values)
    except (TypeError, ValueError) as error:  # strings, objects, rows of different lengths
        raise ValueError(f"{side} features must be an array of floating point numbers ({error})") from None
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise ValueError(f"{side} features must be (images, dimensions), not {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{side} features must be floating point, not {tensor.dtype}")
    return tensor


def _shared_tensor(values: NDArray[np.floating]) -> Tensor:
    """The array as a tensor on the same memory; a copy only of what torch cannot describe.

    That memory may be read-only, such as a file's (`np.load(...,
    mmap_mode="r")`): nothing here ever writes to it.
    """
    array = np.asarray(values)
    if min(array.strides, default=0) < 0:
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def _ids(name: str, values: Ids, count: int) -> NDArray[np.int64]:
    if values is None and name.endswith("camids"):
        raise ValueError(
            f"{name}: none given; for data without cameras give every query camera 0 and every gallery image "
            "camera 1, so that no match is left out"
        )
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.ndim != 1 or len(array) != count:
        raise ValueError(f"{name} must be one integer per feature row ({count}), not shape {array.shape}")
    if count and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, not {array.dtype}")
    return array.astype(np.int64)
