"""The first exchange of a loss over ranks: counts of rows, and whether every rank's call can be computed together.

A rank that raised alone would leave the others waiting in their next collective, and a rank with another margin would
compute another loss. So nothing is raised before the exchange, and what is raised is the same line on every rank.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .inputs import FLOATS
from .ranks import RankLayout, ReferenceLayout

TEXT_BYTES = 2048  # of what a rank says where something is wrong


def agree_on_layout(
    rows_BD: object,
    problem: str | None,
    group: dist.ProcessGroup | None,
    options: Mapping[str, Any] | None = None,
) -> RankLayout:
    """`agree_on_layouts` of a call whose candidates are the batch."""
    return agree_on_layouts(rows_BD, None, problem, group, options)[0]


def agree_on_layouts(
    rows_BD: object,
    reference_RD: Tensor | None,
    problem: str | None,
    group: dist.ProcessGroup | None,
    options: Mapping[str, Any] | None = None,
) -> tuple[RankLayout, ReferenceLayout]:
    """Exchange row counts over the group; raise ValueError, the same line on every rank, when any rank's input is bad or
    the ranks' widths, dtypes or options differ.

    Every rank of the group takes part (one small all-gather, read on the host: a host sync). A group of one rank is no
    group: nothing is exchanged. `problem` is what this rank found wrong with its own input, None when nothing: rows_BD
    is a tensor then. reference_RD: candidates that are not the batch, of the rows' width; None: none.
    `options`: what must be equal on all ranks; compared by a hash.
    """
    rank = 0 if group is None else dist.get_rank(group)
    if rank < 0:
        raise ValueError("group: this process is not one of the group's ranks")
    learning = reference_RD is not None and reference_RD.requires_grad
    references = 0 if reference_RD is None else len(reference_RD)
    if group is None or dist.get_world_size(group) == 1:
        if problem:
            raise ValueError(problem)
        assert isinstance(rows_BD, Tensor)
        return RankLayout(None, 0, (rows_BD.shape[0],)), ReferenceLayout(None, 0, (references,), learning)
    device = _device_of_exchange(rows_BD, group)
    text = json.dumps(dict(options or {}), sort_keys=True, default=str)
    numbers = (0, 0, 0, 0, 0, 0)
    if not problem:
        assert isinstance(rows_BD, Tensor)
        numbers = (1, *rows_BD.shape, FLOATS.index(rows_BD.dtype), references, int(learning))
    table_W7 = _gathered(torch.tensor([*numbers, _hash(text)], dtype=torch.int64), group, device)
    fine, rows, columns, dtypes, candidates, learn, hashes = (tuple(c) for c in table_W7.t().tolist())
    if min(fine) and len(set(columns)) == len(set(dtypes)) == len(set(hashes)) == 1:
        return RankLayout(group, rank, rows), ReferenceLayout(group, rank, candidates, any(learn))
    said = problem or text
    raise ValueError(_first_disagreement(fine, columns, dtypes, _texts(said, group, device)))


def _first_disagreement(
    fine: tuple[int, ...], columns: tuple[int, ...], dtypes: tuple[int, ...], texts: list[str]
) -> str:
    """The line every rank raises: of the lowest rank with a problem, else what differs."""
    if not min(fine):
        rank = fine.index(0)
        return f"rank {rank} of the group: {texts[rank]}"
    if len(set(columns)) > 1:
        return f"the ranks' rows differ in width: {list(columns)} columns by rank; pass the same width"
    if len(set(dtypes)) > 1:
        names = [str(FLOATS[code]) for code in dtypes]
        return f"the ranks' rows differ in dtype: {names} by rank; pass the same dtype"
    calls = [dict(json.loads(text)) for text in texts]
    for key in sorted(set().union(*calls)):
        values = [repr(call.get(key)) for call in calls]
        usual = Counter(values).most_common(1)[0][0]  # of equally common ones that of the lowest rank
        others = [rank for rank, value in enumerate(values) if value != usual]
        if others:
            return (
                f"the ranks' options differ: rank {others[0]} of the group has {key}={values[others[0]]}, "
                f"others {key}={usual}; pass the same on every rank"
            )
    return "the ranks' options differ; pass the same on every rank"


def _device_of_exchange(rows_BD: object, group: dist.ProcessGroup) -> torch.device:
    """The rows' device, or where there are no rows, one that the group can exchange from."""
    if isinstance(rows_BD, Tensor):
        return rows_BD.device
    on_gpu = "nccl" in dist.get_backend(group) and "gloo" not in dist.get_backend(group)
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _gathered(own: Tensor, group: dist.ProcessGroup, device: torch.device) -> Tensor:
    """[n] of every rank as [W, n]."""
    own = own.to(device)
    table = own.new_empty((dist.get_world_size(group), len(own)))
    dist.all_gather_into_tensor(table, own[None], group=group)
    return table


def _texts(own: str, group: dist.ProcessGroup, device: torch.device) -> list[str]:
    """Every rank's text, cut to TEXT_BYTES. Only where something is wrong: a second exchange."""
    letters = own.encode()[:TEXT_BYTES].ljust(TEXT_BYTES)
    table = _gathered(torch.tensor(list(letters), dtype=torch.uint8), group, device)
    return [bytes(row).decode(errors="replace").rstrip() for row in table.tolist()]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], signed=True)
