"""The log-sum-exp losses against their formulas written as loops over anchors and pairs in float64, and
against peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskreid_kernels import all_pairs_loss, circle_loss, n_pair_loss, supervised_contrastive_loss

BACKENDS = ["reference", "dense", "chunked"]


def total(numbers: Iterable[Tensor]) -> Tensor:
    """One after the other, from the first on."""
    return sum(numbers, start=torch.zeros((), dtype=torch.float64))


def n_pair_loop(p: Tensor, n: Tensor, scale: float = 1.0) -> Tensor:
    return total(torch.log(1 + total(torch.exp(scale * (s - r)) for s in n)) for r in p) / len(p)


def all_pairs_loop(p: Tensor, n: Tensor, scale: float = 1.0, margin: float = 0.0) -> Tensor:
    return torch.log(1 + total(torch.exp(scale * (s - r + margin)) for r in p for s in n))


def circle_loop(p: Tensor, n: Tensor, margin: float = 0.25, gamma: float = 128.0) -> Tensor:
    push = total(torch.exp(gamma * max(s.item() + margin, 0) * (s - margin)) for s in n)
    pull = total(torch.exp(-gamma * max(1 + margin - r.item(), 0) * (r - (1 - margin))) for r in p)
    return torch.log(1 + push * pull)


def supervised_contrastive_loop(p: Tensor, n: Tensor, temperature: float = 0.1) -> Tensor:
    everybody = total(torch.exp(s / temperature) for s in [*p, *n])
    return -total(torch.log(torch.exp(r / temperature) / everybody) for r in p) / len(p)


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[dict[str, float]]]] = {
    "n_pair": (n_pair_loss, n_pair_loop, [{}, {"scale": 12.0}]),
    "all_pairs": (all_pairs_loss, all_pairs_loop, [{}, {"scale": 9.0, "margin": 0.3}]),
    "circle": (
        circle_loss,
        circle_loop,
        [{}, {"gamma": 16.0, "margin": 0.4}, {"gamma": 4.0, "margin": -0.1}],
    ),
    "supervised_contrastive": (
        supervised_contrastive_loss,
        supervised_contrastive_loop,
        [{}, {"temperature": 0.7}],
    ),
}


def oracle(
    name: str, embeddings: Tensor, labels: Tensor, normalize: bool = True, **constants: float
) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64, one anchor and one pair at a time."""
    rows = embeddings.detach().double().requires_grad_()
    x = rows / rows.norm(dim=1, keepdim=True) if normalize else rows
    names = labels.tolist()
    losses = [rows.sum() * 0]
    for k in range(len(names)):
        others = [i for i in range(len(names)) if i != k and names[i] == names[k]]
        strangers = [j for j in range(len(names)) if names[j] != names[k]]
        if others and strangers:
            losses.append(
                LOSSES[name][1]((x[others] @ x[k]).unbind(), (x[strangers] @ x[k]).unbind(), **constants)
            )
    loss = total(losses) / max(len(losses) - 1, 1)
    loss.backward()
    assert rows.grad is not None
    return loss.detach(), rows.grad


def batch(rows: int, columns: int, identities: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(identities, (rows,), generator=generator)
    centres = torch.randn(identities, columns, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(rows, columns, generator=generator, dtype=torch.float64), labels


def compare(
    name: str,
    rows: Tensor,
    labels: Tensor,
    backend: str,
    expected: tuple[Tensor, Tensor],
    tolerance: float,
    **options: Any,
) -> None:
    rows = rows.detach().clone().requires_grad_()
    loss = LOSSES[name][0](rows, labels, backend=backend, **options)
    loss.backward()
    value, gradient = expected
    assert loss.shape == () and rows.grad is not None
    assert float((loss.detach() - value).abs()) <= tolerance * max(1, float(value))
    assert float((rows.grad - gradient).norm()) <= tolerance * max(
        float(gradient.norm()), 0.2
    )  # in one column rows have no direction to turn to: the gradient is rounding alone


def check(name: str, embeddings: Tensor, labels: Tensor, tolerance: float = 1e-10, **options: Any) -> None:
    """Both backends against the loops."""
    expected = oracle(name, embeddings, labels, **options)
    for backend in BACKENDS:
        compare(name, embeddings, labels, backend, expected, tolerance, **options)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "rows,columns,identities", [(2, 13, 2), (3, 2, 2), (13, 1, 4), (13, 13, 3), (23, 8, 19)]
)
def test_against_loops(rows: int, columns: int, identities: int, name: str) -> None:
    embeddings, labels = batch(rows, columns, identities)
    for constants in LOSSES[name][2]:
        check(name, embeddings, labels, **constants)
        check(name, embeddings.float(), labels.int(), 1e-4, **constants)
    check(name, embeddings / 4, labels * -7 - 1, normalize=False, **LOSSES[name][2][1])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rows,columns,identities", [(130, 257, 30), (257, 13, 3), (257, 130, 250)])
def test_chunked_against_the_reference_in_float64(
    rows: int, columns: int, identities: int, name: str
) -> None:
    embeddings, labels = batch(rows, columns, identities)
    for constants in LOSSES[name][2]:
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
            low = embeddings.to(dtype)
            double = low.double().clone().requires_grad_()
            loss = LOSSES[name][0](double, labels, backend="reference", **constants)
            loss.backward()
            assert double.grad is not None
            compare(name, low, labels, "chunked", (loss.detach(), double.grad), tolerance, **constants)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_by_hand(backend: str) -> None:
    # Unit rows a = (1, 0), b = (.6, .8), c = (0, 1); identities a, b | c: S_ab = .6, S_ac = 0, S_bc = .8.
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([4, 4, -9])
    softplus = lambda z: math.log1p(math.exp(z))  # noqa: E731
    one_pair = (softplus(0 - 0.6) + softplus(0.8 - 0.6)) / 2
    options: dict[str, Any] = {"backend": backend}
    assert float(n_pair_loss(rows, labels, **options)) == pytest.approx(one_pair, abs=1e-12)
    assert float(all_pairs_loss(rows, labels, **options)) == pytest.approx(one_pair, abs=1e-12)
    info_nce = supervised_contrastive_loss(rows, labels, temperature=0.5, **options)
    assert float(info_nce) == pytest.approx((softplus(-1.2) + softplus(0.4)) / 2, abs=1e-12)
    # a_p = 1 + .25 - .6 = .65, pull = -2 * .65 * (.6 - .75); a_n = .25 and 1.05, push = 2 a_n (S - .25)
    pull, push_a, push_b = 0.195, 2 * 0.25 * -0.25, 2 * 1.05 * 0.55
    circle = circle_loss(rows, labels, gamma=2.0, **options)
    assert float(circle) == pytest.approx((softplus(pull + push_a) + softplus(pull + push_b)) / 2, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_pytorch_metric_learning(backend: str) -> None:
    peers = pytest.importorskip("pytorch_metric_learning.losses")
    generator = torch.Generator().manual_seed(2)
    labels = (
        torch.arange(48)[torch.randperm(48, generator=generator)] // 4
    )  # equal identities: one mean over all
    x = torch.randn(48, 16, generator=generator, dtype=torch.float64)
    pairs = [
        (peers.NTXentLoss(temperature=0.2), partial(n_pair_loss, scale=5.0)),
        (peers.SupConLoss(temperature=0.2), partial(supervised_contrastive_loss, temperature=0.2)),
        (peers.CircleLoss(m=0.3, gamma=20), partial(circle_loss, margin=0.3, gamma=20.0)),
    ]
    for peer, own in pairs:
        ours, theirs = (x.clone().requires_grad_() for _ in range(2))
        loss, expected = own(ours, labels, backend=backend), peer(theirs, labels)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)


def test_one_positive_each_is_info_nce_in_both_forms() -> None:
    x, labels = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 10
    torch.testing.assert_close(
        n_pair_loss(x, labels, scale=4.0, backend="chunked"),
        supervised_contrastive_loss(x, labels, temperature=0.25, backend="chunked"),
    )
    unit = F.normalize(x)
    logits = (4 * unit @ unit.t()).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, (torch.arange(20) + 10) % 20)
    torch.testing.assert_close(supervised_contrastive_loss(x, labels, temperature=0.25), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [[], [3], [3, 3, 3], [0, 1, 2, 3], [5, 5, -1, 2]])
def test_few_or_no_valid_anchors(labels: list[int], name: str) -> None:
    embeddings = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label_tensor = torch.tensor(labels, dtype=torch.int64)
    check(name, embeddings, label_tensor, **LOSSES[name][2][1])
    if len(set(labels)) in (0, 1, len(labels)):
        for backend in BACKENDS:
            rows = embeddings.float().requires_grad_()
            loss = LOSSES[name][0](rows, label_tensor, backend=backend)
            loss.backward()
            assert float(loss) == 0 and rows.grad is not None and not rows.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_duplicate_identical_and_zero_rows(name: str) -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 0, 1])
    embeddings = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    embeddings[5], embeddings[2] = embeddings[0], embeddings[0]  # a positive and a negative equal the anchor
    check(name, embeddings, labels, **LOSSES[name][2][1])
    check(name, torch.ones(7, 4, dtype=torch.float64), labels, **LOSSES[name][2][1])
    embeddings[1] = 0
    for backend in BACKENDS:
        rows = embeddings.float().requires_grad_()
        LOSSES[name][0](rows, labels, backend=backend).backward()
        assert rows.grad is not None and rows.grad.isfinite().all()
        assert not rows.grad[1].any() and rows.grad.any()


@pytest.mark.parametrize(
    "name,constants",
    [
        ("n_pair", {"scale": 300.0}),
        ("all_pairs", {"scale": 256.0, "margin": 0.5}),
        ("circle", {"gamma": 256.0, "margin": 0.4}),
        ("circle", {"gamma": 3000.0}),
        ("supervised_contrastive", {"temperature": 0.01}),
    ],
)
def test_large_scales_do_not_overflow(name: str, constants: dict[str, Any]) -> None:
    embeddings, labels = batch(24, 3, 5)
    double = embeddings.requires_grad_()
    expected = LOSSES[name][0](double, labels, backend="reference", **constants)
    expected.backward()
    assert expected.isfinite() and double.grad is not None
    for backend in BACKENDS:
        # Relative to the exponent's size: scale x the rounding of S.
        compare(
            name,
            embeddings.detach().float(),
            labels,
            backend,
            (expected.detach(), double.grad),
            1e-3,
            **constants,
        )
        low = embeddings.detach().clone().mul_(20).float().requires_grad_()  # similarities far beyond 1
        loss = LOSSES[name][0](low, labels, normalize=False, backend=backend)
        loss.backward()
        assert loss.isfinite() and low.grad is not None and low.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name", [name for name in LOSSES if name != "circle"]
)  # circle's weights are detached
def test_gradcheck(name: str, backend: str) -> None:
    embeddings, labels = batch(11, 5, 4, seed=3)
    for normalize in (True, False):
        assert torch.autograd.gradcheck(
            lambda x, n=normalize: LOSSES[name][0](
                x, labels, normalize=n, backend=backend, **LOSSES[name][2][1]
            ),
            embeddings.requires_grad_(),
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_of_circle_with_its_weights_held(backend: str) -> None:
    """Circle's gradient is the derivative of the loss whose weights a_n, a_p stay those of the point."""
    embeddings, labels = batch(9, 4, 3, seed=3)
    margin, gamma = 0.25, 6.0
    held = F.normalize(embeddings) @ F.normalize(embeddings).t()
    same = (labels[:, None] == labels) & ~torch.eye(9, dtype=torch.bool)
    other = labels[:, None] != labels
    valid = same.any(1) & other.any(1)

    def with_held_weights(x: Tensor) -> Tensor:
        S = F.normalize(x) @ F.normalize(x).t()
        push = gamma * (held + margin).relu() * (S - margin)
        pull = -gamma * (1 + margin - held).relu() * (S - 1 + margin)
        z = push.masked_fill(~other, -torch.inf).logsumexp(1) + pull.masked_fill(~same, -torch.inf).logsumexp(
            1
        )
        return F.softplus(z, threshold=1000)[valid].mean()

    rows = embeddings.clone().requires_grad_()
    circle_loss(rows, labels, margin=margin, gamma=gamma, backend=backend).backward()
    step, direction = 1e-5, torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = with_held_weights(embeddings + step * direction) - with_held_weights(
        embeddings - step * direction
    )
    assert rows.grad is not None
    assert float((rows.grad * direction).sum()) == pytest.approx(float(slope) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_nan_is_not_hidden(name: str, backend: str) -> None:
    embeddings = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    embeddings[3, 2] = torch.nan
    assert LOSSES[name][0](embeddings, torch.arange(8) // 2, backend=backend).isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_low_precision_input_is_computed_in_float32(name: str, backend: str) -> None:
    embeddings, labels = batch(40, 16, 9)
    low = embeddings.to(torch.bfloat16).requires_grad_()
    high = low.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name][0](low, labels, backend=backend)
    loss.backward()
    LOSSES[name][0](high, labels, backend="reference").backward()
    assert loss.dtype == torch.float32 and low.grad is not None and low.grad.dtype == torch.bfloat16
    assert high.grad is not None and (low.grad.float() - high.grad).norm() < 5e-3 * high.grad.norm()


@pytest.mark.parametrize("name", LOSSES)
def test_blocks_cover_every_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskreid_kernels.blocks.CACHE_BYTES", 1)
    monkeypatch.setattr("maskreid_kernels.blocks.FAST_ROWS", 7)
    embeddings, labels = batch(40, 5, 12)
    check(name, embeddings, labels, **LOSSES[name][2][1])


def test_upstream_gradient_and_double_backward() -> None:
    embeddings, labels = batch(9, 4, 3)
    plain, scaled = (embeddings.clone().requires_grad_() for _ in range(2))
    circle_loss(plain, labels, backend="chunked").backward()
    (circle_loss(scaled, labels, backend="chunked") * -3).backward()
    assert plain.grad is not None and scaled.grad is not None
    torch.testing.assert_close(scaled.grad, plain.grad * -3)
    loss = circle_loss(plain, labels, backend="chunked")
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, plain, create_graph=True)


class LargestTensor(TorchDispatchMode):
    """Records the most elements any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("name", LOSSES)
def test_chunked_never_holds_a_square_matrix(name: str) -> None:
    embeddings = torch.randn(3000, 4, requires_grad=True)
    with LargestTensor() as largest:
        LOSSES[name][0](embeddings, torch.arange(3000) // 4, backend="chunked").backward()
    assert 0 < largest.elements <= 3000**2 / 8


@pytest.mark.parametrize(
    "loss,options,message",
    [
        (n_pair_loss, {"scale": 0.0}, "scale: expected a finite number above 0, got 0.0"),
        (all_pairs_loss, {"margin": math.nan}, "margin: expected a finite number, got nan"),
        (circle_loss, {"gamma": math.inf}, "gamma"),
        (supervised_contrastive_loss, {"temperature": -0.1}, "temperature"),
        (n_pair_loss, {"backend": "cuda"}, "'cuda' is not available"),
        (circle_loss, {"labels": torch.zeros(3, dtype=torch.int64)}, "labels: 3 entries for 4 rows"),
    ],
)
def test_bad_input(loss: Callable[..., Tensor], options: dict[str, Any], message: str) -> None:
    arguments = {"embeddings": torch.zeros(4, 2), "labels": torch.zeros(4, dtype=torch.int64), **options}
    with pytest.raises(ValueError, match=message):
        loss(**arguments)
