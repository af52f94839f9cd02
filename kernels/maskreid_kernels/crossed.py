"""Anchors against candidates that are not the batch: who is whose positive, and S in tiles.

An anchor that is not valid is nobody's candidate here, so it takes no part: what follows knows valid anchors
alone. A tile is a block of anchors against some references. Its S has one column more, where whatever
concerns references outside the tile may be written and is never read.

Names: B = this rank's rows, R = this rank's references, N = valid anchors of all ranks, V = this rank's, M =
references of all ranks, D = columns, P = the most positives of an anchor, b = anchors of a block, m =
references of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import own_and_global_blocks, own_and_global_tiles, tile_width
from .ranks import RankLayout, ReferenceLayout, gather_rows, gather_rows_with_gradient
from .unit_rows import unit_rows_reference

ALIGNED = 16  # numbers: rows of a tile begin where a GPU reads them fastest


@dataclass(frozen=True)
class Crossing:
    """The positives of a valid anchor: one contiguous range of a stable sort of the references by label.

    anchors, references: how the N and the M lie over the ranks. valid_B: which of this rank's rows are
    anchors, bool. labels_N, labels_M: theirs. order_M: the reference of each sorted place. start_N, count_N:
    first place and number of an anchor's positives. All int64. widest: max of count_N (0 when N = 0).
    """

    anchors: RankLayout
    references: ReferenceLayout
    valid_B: Tensor
    labels_N: Tensor
    labels_M: Tensor
    order_M: Tensor
    start_N: Tensor
    count_N: Tensor
    widest: int

    @property
    def all_valid(self) -> bool:
        """Whether every row of this rank is an anchor."""
        return self.anchors.rows_per_rank[self.anchors.rank] == len(self.valid_B)

    @property
    def counted(self) -> int:
        """Of what the mean is taken: valid anchors of all ranks, at least 1."""
        return max(self.anchors.total_rows, 1)

    @property
    def negatives_N(self) -> Tensor:
        """Negatives of each anchor. int64."""
        return len(self.order_M) - self.count_N

    def positives_of(self, anchors: slice) -> Tensor:
        """References [b, P] int64, ascending; M, which is none, fills up lists shorter than P."""
        place_P = torch.arange(self.widest, device=self.order_M.device)
        index_bP = self.order_M[(self.start_N[anchors, None] + place_P).clamp_(max=len(self.order_M) - 1)]
        return index_bP.masked_fill_(place_P >= self.count_N[anchors, None], len(self.order_M))

    def blocks(
        self, anchors: slice, bytes_per_column: int, bytes_per_positive: int
    ) -> list[tuple[slice, slice]]:
        """Blocks of consecutive anchors, each as (among them, among the N)."""
        columns = tile_width(len(self.order_M)) + ALIGNED
        return own_and_global_blocks(anchors, columns * bytes_per_column + self.widest * bytes_per_positive)


def find_crossing(
    labels_B: Tensor, reference_labels_R: Tensor, layout: RankLayout, references: ReferenceLayout
) -> Crossing:
    """Every rank takes part (two collectives: labels). Two host syncs: how many anchors, and where."""
    labels_N, labels_M = gather_rows(labels_B, layout), gather_rows(reference_labels_R, references)
    sorted_M, order_M = torch.sort(labels_M, stable=True)
    start_N = torch.searchsorted(sorted_M, labels_N)
    count_N = torch.searchsorted(sorted_M, labels_N, right=True).sub_(start_N)
    valid_N = (count_N > 0) & (count_N < len(order_M))
    by_rank = [valid.sum() for valid in valid_N.split(layout.rows_per_rank)]
    most = (count_N * valid_N).max() if len(labels_N) else by_rank[0]
    *counts, widest = torch.stack([*by_rank, most]).tolist()
    anchors = RankLayout(layout.group, layout.rank, tuple(counts))
    valid_B = valid_N[layout.own]
    if anchors.total_rows < len(labels_N):
        place_N = valid_N.nonzero().squeeze(1)
        labels_N, start_N, count_N = labels_N[place_N], start_N[place_N], count_N[place_N]
    return Crossing(anchors, references, valid_B, labels_N, labels_M, order_M, start_N, count_N, widest)


def rows_with_gradient(
    x_VD: Tensor, y_RD: Tensor, crossing: Crossing, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Anchors [N, D] and references [M, D] for plain autograd. Every rank takes part (collectives: both)."""
    x_ND = gather_rows_with_gradient(x_VD, crossing.anchors)
    y_MD = gather_rows_with_gradient(y_RD, crossing.references)
    return (unit_rows_reference(x_ND), unit_rows_reference(y_MD)) if normalize else (x_ND, y_MD)


def no_values(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """The values [0] where no anchor is valid, with zero gradient for both kinds of rows."""
    return x_ND.sum(1) + y_MD[:0].sum()


def places_in_tile(index_bP: Tensor, references: slice) -> Tensor:
    """The tile's column of each positive; its last, which is nobody's, for those outside of the tile."""
    inside_bP = (index_bP >= references.start) & (index_bP < references.stop)
    return torch.where(inside_bP, index_bP - references.start, references.stop - references.start)


def product_in_tile(x_bD: Tensor, y_mD: Tensor) -> Tensor:
    """x y^T as [b, m + 1]; the last column is 0."""
    columns = len(y_mD)
    stride = (columns // ALIGNED + 1) * ALIGNED
    tile_bm = x_bD.new_empty((len(x_bD), stride))[:, : columns + 1]
    torch.mm(x_bD, y_mD.t(), out=tile_bm[:, :columns])
    tile_bm[:, columns] = 0
    return tile_bm


def similarities_of_positives(x_bD: Tensor, y_MD: Tensor, index_bP: Tensor) -> tuple[Tensor, Tensor | None]:
    """S of the block's positives [b, P], 0 in places filled up; S of the tile [b, m + 1] if it is one."""
    S_bP = x_bD.new_zeros(index_bP.shape)
    tiles = own_and_global_tiles(slice(0, len(y_MD)))
    for tile, _ in tiles:
        S_bm = product_in_tile(x_bD, y_MD[tile])
        S_bP += S_bm.gather(1, places_in_tile(index_bP, tile))  # 0 where the positive is in another tile
    return S_bP, S_bm if len(tiles) == 1 else None


# dL(k)/dS_kj in the place of a tile's S, of (S [b, m + 1], places [b, P], anchors among the N).
PairGradients = Callable[[Tensor, Tensor, slice], Tensor]


@dataclass(frozen=True)
class CrossedRows:
    """Rows of both kinds for a backward. x_ND: None where no rank's references wait for a gradient."""

    x_VD: Tensor
    x_ND: Tensor | None
    y_MD: Tensor


def rows_gradients(
    rows: CrossedRows,
    crossing: Crossing,
    pair_gradients: PairGradients,
    weight_N: Tensor,
    wanted: tuple[bool, bool],
    bytes_per: tuple[int, int],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of this rank's anchors [V, D] and references [R, D], those that are wanted; else None.

    weight_N: dL/dL(k) of each anchor. No collective: a rank finishes its anchors with everybody's references,
    and its references with everybody's anchors. In one process both come of the same tiles; products: 1 + 1
    per gradient. bytes_per: bytes that `pair_gradients` needs by pair and by place of a list of positives.
    """
    own, everybody = crossing.anchors.own, slice(0, crossing.anchors.total_rows)
    references, all_references = crossing.references.own, slice(0, crossing.references.total_rows)
    of_x_VD = torch.zeros_like(rows.x_VD) if wanted[0] else None
    of_y_RD = torch.zeros_like(rows.y_MD[references]) if wanted[1] else None
    sweeps = [(rows.x_VD, own, all_references, of_x_VD, of_y_RD)]
    if crossing.anchors.group is not None and of_y_RD is not None:
        assert rows.x_ND is not None
        sweeps = [
            (rows.x_VD, own, all_references, of_x_VD, None),
            (rows.x_ND, everybody, references, None, of_y_RD),
        ]
    for x_AD, anchors, columns, of_x_AD, of_y_CD in sweeps:
        if of_x_AD is None and of_y_CD is None:
            continue
        for block, among in crossing.blocks(anchors, *bytes_per):
            index_bP = crossing.positives_of(among)
            x_bD, weight_b1 = x_AD[block], weight_N[among, None]
            for tile, references_m in own_and_global_tiles(columns):
                y_mD = rows.y_MD[references_m]
                S_bm = product_in_tile(x_bD, y_mD)
                G_bm = pair_gradients(S_bm, places_in_tile(index_bP, references_m), among)[:, :-1]
                if of_x_AD is not None:
                    of_x_AD[block].addmm_(G_bm, y_mD)
                if of_y_CD is not None:
                    of_y_CD[tile].addmm_(G_bm.t(), x_bD * weight_b1)
            if of_x_AD is not None:
                of_x_AD[block].mul_(weight_b1)
    return of_x_VD, of_y_RD


def gathered_rows(x_VD: Tensor, y_RD: Tensor, crossing: Crossing) -> CrossedRows:
    """Every rank takes part (collectives: references; anchors where some rank's references learn)."""
    x_ND = gather_rows(x_VD, crossing.anchors) if crossing.references.learning else None
    return CrossedRows(x_VD.detach(), x_ND, gather_rows(y_RD, crossing.references))


def anchor_weights(of_loss: Tensor, crossing: Crossing, per_anchor: bool) -> Tensor:
    """dL/dL(k) [N] of the gradient that flows into the loss: one of each anchor, or of their mean."""
    if per_anchor:
        return of_loss
    # W: see maskreid_kernels.ranks
    weight = of_loss * crossing.anchors.world_size / crossing.counted
    return weight.expand(crossing.anchors.total_rows)
