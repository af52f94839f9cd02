"""What `explain` says a call would run: the same as runs, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskreid_kernels import LOSSES, backends
from maskreid_kernels.batch_hard import specialised
from maskreid_kernels.choices import EVIDENCE, FAMILIES, explain
from maskreid_kernels.ranking.triton_forward import SPARSE_UP_TO
from maskreid_kernels.symmetric_tiles import SWITCH


@pytest.fixture(autouse=True)
def as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in (SWITCH, specialised.SWITCH):
        monkeypatch.delenv(switch, raising=False)


def test_every_loss_is_explained() -> None:
    assert set(FAMILIES) == set(LOSSES)
    for loss, family in FAMILIES.items():
        for device in ("cpu", "cuda"):
            for rows in (64, 8192):
                expected = backends.choose_backend(
                    "auto",
                    rows,
                    family.plain_up_to,
                    device=torch.device(device),
                    available=family.available,
                )
                found = explain(loss, rows, 256, device=device, precision="tf32")
                assert found.backend == expected and found.passes and found.reasons
                assert str(found).startswith(expected)


def test_half_of_the_work_is_said_where_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    words: dict[str, Any] = {"device": "cuda", "precision": "tf32"}
    assert "half of S" in explain("batch_hard", 8192, 256).passes[0]
    assert "all of S" in explain("batch_hard", 8192, 256, **words).passes[0]
    assert SWITCH in explain("n_pair", 8192, 256, **words).reasons[1]
    monkeypatch.setenv(SWITCH, "1")
    assert "the upper triangle" in explain("batch_hard", 8192, 256, **words).passes[0]
    assert "the upper triangle" in explain("circle", 8192, 256, **words).passes[0]
    assert explain("ranking", 8192, 256, **words).passes[0].startswith("forward: the upper triangle of S")
    assert "for rows in bfloat16" in explain("batch_hard", 8192, 256, **words).reasons[-1]
    cuda = torch.device("cuda")
    assert specialised.SWITCH in str(specialised.why_not_specialised(64, 64, 256, torch.bfloat16, cuda))
    for found in (
        explain("ranking", 8192, 256, dtype=torch.float64, device="cuda"),
        explain("ranking", 8192, 256, world_size=2, **words),
        explain("batch_hard", 8192, 256, world_size=2, **words),
        explain("batch_hard", 8192, 256, dtype=torch.float64, device="cuda"),
    ):
        assert "all of S" in found.passes[0]


def test_the_ranking_losss_backward_follows_the_share_inside_the_margin() -> None:
    few, many = (
        explain("ranking", 8192, 256, device="cuda", precision="tf32", inside=factor * SPARSE_UP_TO)
        for factor in (0.5, 2.0)
    )
    assert few.passes[1] == "backward: marked pairs" and "bands" in many.passes[1]
    assert EVIDENCE["marks"] in few.reasons[-1]


def test_what_is_refused_is_refused() -> None:
    with pytest.raises(ValueError, match="loss 'triplet'"):
        explain("triplet", 64, 256)
    with pytest.raises(ValueError, match="available"):
        explain("softmax", 64, 256, backend="triton")
