"""The softmax loss against a loop over rows in float64."""

from __future__ import annotations

import pytest
import torch

from maskreid_kernels import softmax_loss

BACKENDS = ["reference", "chunked"]


def batch(rows: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = 5 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows,classes", [(0, 3), (1, 1), (2, 13), (130, 257)])
def test_against_loop(rows: int, classes: int, backend: str) -> None:
    logits, targets = batch(rows, classes)
    exact = logits.clone().requires_grad_()
    losses = [torch.log(torch.exp(exact[k]).sum()) - exact[k, targets[k]] for k in range(rows)]
    expected = (sum(losses, start=torch.zeros(())) + exact.sum() * 0) / max(rows, 1)
    expected.backward()
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        own = logits.to(dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = softmax_loss(own, targets.int(), backend=backend)
        loss.backward()
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(loss.double(), expected.double(), rtol=tolerance, atol=tolerance)
        assert own.grad is not None and own.grad.dtype == dtype
        torch.testing.assert_close(
            own.grad.double(), exact.grad, rtol=tolerance, atol=tolerance / max(rows, 1)
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits(backend: str) -> None:
    loss = softmax_loss(torch.tensor([[1e4, 0.0], [0.0, -1e4]]), torch.tensor([1, 0]), backend=backend)
    assert float(loss) == pytest.approx(5e3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    logits, targets = batch(6, 5)
    assert torch.autograd.gradcheck(
        lambda z: softmax_loss(z, targets, backend=backend), logits.requires_grad_()
    )


def test_double_backward_is_refused() -> None:
    logits, targets = batch(6, 5)
    loss = softmax_loss(logits.requires_grad_(), targets, backend="chunked")
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_blocks_cover_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskreid_kernels.blocks.CACHE_BYTES", 1)
    monkeypatch.setattr("maskreid_kernels.blocks.FAST_ROWS", 7)
    logits, targets = batch(60, 9)
    results = []
    for backend in BACKENDS:
        own = logits.clone().requires_grad_()
        softmax_loss(own, targets, backend=backend).backward()
        results.append(own.grad)
    torch.testing.assert_close(results[0], results[1])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"targets: from 0 to 3, outside \[0, 3\)"):
        softmax_loss(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="targets: 1 entries for 2 rows of logits"):
        softmax_loss(torch.zeros(2, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match="not available"):
        softmax_loss(torch.zeros(2, 3), torch.tensor([0, 1]), backend="triton")
