"""Alpha-weighted query expansion (Radenovic et al., TPAMI 2019, arXiv 1711.02512, section 3.5)."""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from maskreid_dist.retrieval.group import share_labels, sum_over_ranks
from maskreid_dist.retrieval.inputs import Features, ImageSet, both_sides
from maskreid_dist.retrieval.nearest import nearest_of_all
from maskreid_kernels.options import check_group

_CHUNK = 256  # queries whose neighbours' rows are held at once


@dataclass(frozen=True)
class Expansion:
    """k: nearest images that are added. alpha: power of their similarity, their weight; 0: the plain mean.
    Raises ValueError for others than k >= 1 and finite alpha >= 0."""

    k: int = 10
    alpha: float = 3.0

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 <= self.alpha < math.inf:
            raise ValueError(
                f"query expansion: k is at least 1 and alpha not negative, not {self.k} and {self.alpha}"
            )


def expand_queries(
    query: Features,
    gallery: Features,
    *,
    k: int = Expansion.k,
    alpha: float = Expansion.alpha,
    group: dist.ProcessGroup | None = None,
) -> NDArray[np.float32]:
    """Every query plus its k nearest gallery images, each weighted by similarity ** alpha: (Q, D) float32,
    unit rows.

    Similarities are cosines; images at a negative one weigh nothing. alpha = 0 is the plain mean.
    group: as for `nearest`. Raises ValueError for bad input; over a group the same line on every rank.
    """
    check_group(group)
    sides: tuple[ImageSet | None, ImageSet | None] = (None, None)
    problem = None
    try:
        Expansion(k, alpha)  # checks them
        ids = [np.zeros(len(rows), np.int64) for rows in (query, gallery)]
        sides = both_sides(query, ids[0], ids[0], gallery, ids[1], ids[1], metric="cosine")
    except (TypeError, ValueError) as error:
        problem = str(error)
    labels = share_labels(*sides, problem, {"k": k, "alpha": alpha}, group)
    query_set, gallery_set = cast(tuple[ImageSet, ImageSet], sides)
    lists = nearest_of_all(query_set, gallery_set, k, "cosine", labels.offset, group)
    weight_QK = torch.from_numpy(1.0 - lists.distance_QK).clamp_min_(0.0).pow_(alpha)
    index_QK = torch.from_numpy(lists.index_QK)
    expanded = []
    for rows, q_norm, weights, index in zip(
        query_set.features.split(_CHUNK),
        query_set.norms.split(_CHUNK),
        weight_QK.split(_CHUNK),
        index_QK.split(_CHUNK),
        strict=True,
    ):
        unit = _unit_rows(gallery_set, index - labels.offset, group).to(rows.device)
        own = rows.double() / q_norm.clamp_min(1e-12)[:, None]
        total = own + (unit * weights.to(rows.device)[..., None]).sum(dim=1)
        expanded.append(torch.nn.functional.normalize(total, dim=1).float().cpu())
    return torch.cat(expanded).numpy()


def _unit_rows(gallery: ImageSet, index_QK: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(Q, K, D) float64: those of this rank's images, whose numbers lie within its own, of all ranks."""
    unit = torch.zeros(*index_QK.shape, gallery.features.shape[1], dtype=torch.float64)
    here = (index_QK >= 0) & (index_QK < len(gallery))
    chosen = index_QK[here].to(gallery.features.device)
    unit[here] = (gallery.features[chosen].double() / gallery.norms[chosen].clamp_min(1e-12)[:, None]).cpu()
    return sum_over_ranks(unit, group)
