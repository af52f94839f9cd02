"""Alpha-weighted query expansion (Radenovic et al., TPAMI 2019, arXiv 1711.02512, section 3.5)."""

import numpy as np
import torch
from numpy.typing import NDArray

from maskreid_dist.retrieval.inputs import Features, both_sides
from maskreid_dist.retrieval.nearest import nearest_images


def expand_queries(
    query: Features, gallery: Features, *, k: int = 10, alpha: float = 3.0
) -> NDArray[np.float32]:
    """Every query plus its k nearest gallery images, each weighted by similarity ** alpha: (Q, D) float32,
    unit rows.

    Similarities are cosines; images at a negative one weigh nothing. alpha = 0 is the plain mean.
    Raises ValueError for bad input.
    """
    if k < 1 or alpha < 0:
        raise ValueError(f"query expansion: k is at least 1 and alpha not negative, not {k} and {alpha}")
    ids = [np.zeros(len(rows), np.int64) for rows in (query, gallery)]
    query_set, gallery_set = both_sides(query, ids[0], ids[0], gallery, ids[1], ids[1], metric="cosine")
    lists = nearest_images(query_set, gallery_set, k, "cosine")
    weight_QK = torch.from_numpy(1.0 - lists.distance_QK).clamp_min_(0.0).pow_(alpha)
    index_QK = torch.from_numpy(lists.index_QK)
    expanded = []
    for rows, q_norm, weights, index in zip(
        query_set.features.split(256),
        query_set.norms.split(256),
        weight_QK.split(256),
        index_QK.split(256),
        strict=True,
    ):
        chosen = index.to(gallery_set.features.device)
        norms = gallery_set.norms[chosen].clamp_min(1e-12)
        unit = (gallery_set.features[chosen].double() / norms[..., None]).to(rows.device)
        own = rows.double() / q_norm.clamp_min(1e-12)[:, None]
        total = own + (unit * weights.to(rows.device)[..., None]).sum(dim=1)
        expanded.append(torch.nn.functional.normalize(total, dim=1).float().cpu())
    return torch.cat(expanded).numpy()
