"""The collectives of an evaluation whose gallery is spread over the ranks of a process group.

Every rank of the group takes part in every function here, in the same order; with `group=None` nothing is
sent. An evaluation sends labels, good images' distances and counts, never features; re-ranking, of which
every rank needs all images, sends each rank's to all.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.retrieval.inputs import ImageSet
from maskreid_dist.retrieval.pairs import GalleryIndex
from maskreid_kernels.agreement import agree, device_of_group


@dataclass(frozen=True, eq=False)
class GalleryLabels:
    """Labels of the whole gallery in rank order, and the global index of this rank's first gallery image."""

    gallery: GalleryIndex
    offset: int


def share_labels(
    query: ImageSet | None,
    gallery: ImageSet | None,
    problem: str | None,
    options: Mapping[str, object],
    group: dist.ProcessGroup | None,
) -> GalleryLabels:
    """Exchange labels. Raises ValueError, the same line on every rank, where any rank has a problem, other
    queries or other options: nobody waits for ever.

    A group of one rank is no group. problem: what this rank found wrong, None when nothing; both sides are
    there then.
    """
    if group is None or dist.get_world_size(group) == 1:
        if problem is not None or query is None or gallery is None:
            raise ValueError(problem or "no query and gallery given")
        return GalleryLabels(GalleryIndex.build(gallery.pids, gallery.camids), 0)
    equal = {**options, **({} if query is None else _described(query))}
    counts = agree(problem, equal, (0 if gallery is None else len(gallery),), group)
    sizes = [count for (count,) in counts]
    assert gallery is not None  # who has none has a problem
    padded = torch.zeros(2, max(sizes), dtype=torch.int64)
    padded[0, : len(gallery)] = torch.from_numpy(gallery.pids)
    padded[1, : len(gallery)] = torch.from_numpy(gallery.camids)
    labels = _gather(padded, group).numpy()
    pids = np.concatenate([labels[rank, 0, :size] for rank, size in enumerate(sizes)])
    camids = np.concatenate([labels[rank, 1, :size] for rank, size in enumerate(sizes)])
    return GalleryLabels(GalleryIndex.build(pids, camids), sum(sizes[: dist.get_rank(group)]))


def sum_over_ranks(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Element-wise sum over the ranks, on the values' device. Exact for counts and
    for values only one rank holds."""
    if group is None:
        return values
    sent = values.to(device_of_group(group), copy=True)
    dist.all_reduce(sent, group=group)
    return sent.to(values.device)


def gather_rows(values: NDArray[Any], group: dist.ProcessGroup | None) -> list[NDArray[Any]]:
    """The (Q, K) arrays of all ranks; K may differ, Q not. Two collectives."""
    if group is None or dist.get_world_size(group) == 1:
        return [values]
    widths = _gather(torch.tensor([values.shape[1]]), group)[:, 0].tolist()
    padded = np.zeros((len(values), max(widths)), values.dtype)
    padded[:, : values.shape[1]] = values
    gathered = _gather(torch.from_numpy(padded), group).numpy()
    return [rows[:, :width] for rows, width in zip(gathered, widths, strict=True)]


def own_run(items: int, unit: int, group: dist.ProcessGroup | None) -> slice:
    """This rank's of so many items: neighbours, in rank order, in whole units; only the last may be cut."""
    if group is None:
        return slice(0, items)
    rank, size, units = dist.get_rank(group), dist.get_world_size(group), -(-items // unit)
    start, stop = (min(at * units // size * unit, items) for at in (rank, rank + 1))
    return slice(start, stop)


def gather_all(own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(n, ...) of every rank as one (sum of n, ...) in rank order, bit for bit, on `own`'s device.

    n may differ, the rest not. Two collectives.
    """
    if group is None or dist.get_world_size(group) == 1:
        return own
    sizes = _gather(torch.tensor([len(own)]), group)[:, 0].tolist()
    row_bytes = math.prod(own.shape[1:]) * own.element_size()
    padded = torch.zeros(max(sizes), row_bytes, dtype=torch.uint8)  # bytes: for any dtype
    if len(own):
        padded[: len(own)] = own.cpu().contiguous().view(torch.uint8).view(len(own), row_bytes)
    parts = _gather(padded, group)
    rows = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return rows.view(own.dtype).view(-1, *own.shape[1:]).to(own.device)


def whole_gallery(own: ImageSet, labels: GalleryLabels, group: dist.ProcessGroup | None) -> ImageSet:
    """The images of all ranks on every rank."""
    features, norms = gather_all(own.features, group), gather_all(own.norms, group)
    return ImageSet(features, norms, labels.gallery.pids, labels.gallery.camids)


def _described(query: ImageSet) -> dict[str, str]:
    """What stands for the queries where they must be equal on all ranks."""
    arrays = {
        "query": query.features.cpu().float().numpy(),
        "query_pids": query.pids,
        "query_camids": query.camids,
    }
    return {
        name: f"{' x '.join(map(str, array.shape))} numbers of checksum {zlib.crc32(_bytes(array)):08x}"
        for name, array in arrays.items()
    }


def _bytes(array: NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _gather(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Stack the ranks' equally shaped tensors along a new first axis, on the CPU."""
    values = values.to(device_of_group(group))
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values, group=group)
    return torch.stack(parts).cpu()
