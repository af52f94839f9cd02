"""The first exchange of a call over ranks: whether every rank's call can be computed together.

A rank that raised alone would leave the others waiting in their next collective, and a rank with another
margin would compute another loss. So nothing is raised before the exchange, and what is raised is the same
line on every rank.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TEXT_BYTES = 2048  # of what a rank says where something is wrong


def agree(
    problem: str | None,
    options: Mapping[str, Any],
    numbers: Sequence[int],
    group: dist.ProcessGroup,
    device: torch.device | None = None,
) -> list[tuple[int, ...]]:
    """Every rank's numbers, by rank. Raises ValueError, the same line on every rank, when any rank has a
    problem or the ranks' options differ.

    Every rank of the group takes part (one small all-gather, read on the host: a host sync), whatever it
    found. problem: what this rank found wrong, in one line, None when nothing. options: what must be equal on
    all ranks, by name; compared by a hash. numbers: as many on every rank, its problem or not. device: to
    exchange from, None: one that the group can.
    """
    device = device or device_of_group(group)
    text = json.dumps(dict(options), sort_keys=True, default=str)
    own = torch.tensor([problem is None, _hash(text), *numbers], dtype=torch.int64)
    table = _gathered(own, group, device).tolist()
    if all(fine for fine, *_ in table) and len({options_hash for _, options_hash, *_ in table}) == 1:
        return [tuple(row[2:]) for row in table]
    texts = _texts(problem or text, group, device)
    raise ValueError(_first_disagreement([bool(fine) for fine, *_ in table], texts))


def device_of_group(group: dist.ProcessGroup) -> torch.device:
    """One that the group can exchange from: the current GPU where it has NCCL alone, else the CPU."""
    backends = dist.get_backend(group)
    on_gpu = "nccl" in backends and "gloo" not in backends
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _first_disagreement(fine: list[bool], texts: list[str]) -> str:
    """The line every rank raises: of the lowest rank with a problem, else what differs."""
    if not all(fine):
        rank = fine.index(False)
        return f"rank {rank} of the group: {texts[rank]}"
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
