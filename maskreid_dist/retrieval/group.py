"""The collectives of an evaluation whose gallery is spread over the ranks of a process group.

Every rank of the group takes part in every function here, in the same order; with `group=None` nothing is
sent. Only labels, good images' distances and counts travel, never features.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.retrieval.inputs import ImageSet
from maskreid_dist.retrieval.pairs import GalleryIndex


@dataclass(frozen=True, eq=False)
class GalleryLabels:
    """Labels of the whole gallery in rank order, and the global index of this rank's first gallery image."""

    gallery: GalleryIndex
    offset: int


def share_labels(
    query: ImageSet | None,
    gallery: ImageSet | None,
    problem: ValueError | None,
    group: dist.ProcessGroup | None,
) -> GalleryLabels:
    """Exchange labels; bad input on any rank raises ValueError on every rank, so that none waits for ever."""
    if group is None:
        if problem is not None or query is None or gallery is None:
            raise problem or ValueError("no query and gallery given")
        return GalleryLabels(GalleryIndex.build(gallery.pids, gallery.camids), 0)
    facts = _gather(torch.tensor(_facts(query, gallery), dtype=torch.int64), group).numpy()
    if problem is not None:
        raise problem
    refused = np.flatnonzero(facts[:, 0] == 0)
    if len(refused):
        raise ValueError(f"rank {refused[0]} refused its query or gallery: its own message says why")
    if (facts[:, 1:3] != facts[0, 1:3]).any():
        raise ValueError("the ranks were given different queries: every rank needs the same ones")
    assert gallery is not None
    sizes = facts[:, 3]
    longest = int(sizes.max())
    padded = torch.zeros(2, longest, dtype=torch.int64)
    padded[0, : len(gallery)] = torch.from_numpy(gallery.pids)
    padded[1, : len(gallery)] = torch.from_numpy(gallery.camids)
    labels = _gather(padded, group).numpy()
    pids = np.concatenate([labels[rank, 0, :size] for rank, size in enumerate(sizes)])
    camids = np.concatenate([labels[rank, 1, :size] for rank, size in enumerate(sizes)])
    return GalleryLabels(GalleryIndex.build(pids, camids), int(sizes[: dist.get_rank(group)].sum()))


def sum_over_ranks(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Element-wise sum over the ranks, on the values' device. Exact for counts and
    for values only one rank holds."""
    if group is None:
        return values
    sent = values.to(_device(group), copy=True)
    dist.all_reduce(sent, group=group)
    return sent.to(values.device)


def _facts(query: ImageSet | None, gallery: ImageSet | None) -> list[int]:
    """[input accepted, number of queries, checksum of the queries, number of gallery images]."""
    if query is None or gallery is None:
        return [0, 0, 0, 0]
    checksum = zlib.crc32(_bytes(query.features.cpu().float().numpy()))
    for array in (query.pids, query.camids):
        checksum = zlib.crc32(_bytes(array), checksum)
    return [1, len(query), checksum, len(gallery)]


def _bytes(array: NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _gather(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Stack the ranks' equally shaped tensors along a new first axis, on the CPU."""
    values = values.to(_device(group))
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values, group=group)
    return torch.stack(parts).cpu()


def _device(group: dist.ProcessGroup) -> torch.device:
    """Where the group's backend can send from."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
