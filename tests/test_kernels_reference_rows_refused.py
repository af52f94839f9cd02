"""Candidates that are not the batch (`reference=`): what is refused, in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import maskreid_kernels as kernels
from reference_rows import PAIR_LOSSES

REFUSED: list[tuple[object, dict[str, Any], str]] = [
    (
        torch.zeros(4, 2),
        {},
        "reference: expected a pair (rows, labels), got Tensor; pass reference=(rows, labels)",
    ),
    ((), {}, "reference: expected a pair (rows, labels), got tuple of 0; pass reference=(rows, labels)"),
    (
        (torch.zeros(4, 2), None),
        {},
        "reference[1]: expected a torch.Tensor, got NoneType; pass torch.as_tensor(reference[1])",
    ),
    (
        ([[0.0, 1.0]], torch.zeros(1).long()),
        {},
        "reference[0]: expected a torch.Tensor, got list; pass torch.as_tensor(reference[0])",
    ),
    (
        (torch.zeros(4, 2), torch.zeros(3).long()),
        {},
        "reference[1]: 3 entries for 4 rows of reference[0]; pass one per row",
    ),
    (
        (torch.zeros(4, 2), torch.zeros(4)),
        {},
        "reference[1]: expected a 1-d integer tensor, got shape (4,) of torch.float32; "
        "pass reference[1].long()",
    ),
    (
        (torch.zeros(4, 2).long(), torch.zeros(4).long()),
        {},
        "reference[0]: expected a 2-d float tensor with at least one column, got shape (4, 2) of torch.int64",
    ),
    (
        (torch.zeros(4, 3), torch.zeros(4).long()),
        {},
        "reference[0]: 3 columns while embeddings has 2; pass rows of one width",
    ),
    (
        (torch.zeros(4, 2, device="meta"), torch.zeros(4, device="meta").long()),
        {},
        "reference[0]: on meta while embeddings is on cpu; pass both on one device",
    ),
    (
        (torch.zeros(4, 2), torch.zeros(4).long()),
        {"backend": "dense"},
        "backend 'dense' takes no reference=; use backend=\"chunked\"",
    ),
    (
        (torch.zeros(4, 2), torch.zeros(4).long()),
        {"backend": "triton"},
        "backend 'triton' takes no reference=; use backend=\"chunked\"",
    ),
]


@pytest.mark.parametrize(("reference", "options", "line"), REFUSED)
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_refused(name: str, reference: Any, options: dict[str, Any], line: str) -> None:
    x, y = torch.zeros(6, 2), torch.arange(6) % 3
    with pytest.raises(ValueError) as raised:
        kernels.LOSSES[name](x, y, reference=reference, **options)
    assert str(raised.value) == line
    if name == "supervised_contrastive":  # the rows are scaled before they are checked
        temperature = torch.tensor(0.1, requires_grad=True)
        with pytest.raises(ValueError) as raised:
            kernels.supervised_contrastive_loss(x, y, temperature=temperature, reference=reference, **options)
        assert str(raised.value) == line


def test_softmax_has_no_candidates_to_give() -> None:
    with pytest.raises(TypeError, match="reference"):
        kernels.LOSSES["softmax"](torch.zeros(4, 2), torch.zeros(4).long(), reference=None)
