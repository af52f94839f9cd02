"""Options of the losses: what would be wrong in silence is right or refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import maskreid_kernels as kernels

BACKENDS = ("reference", "dense", "chunked")
PAIR_LOSSES = [name for name in kernels.LOSSES if name != "softmax"]
NUMBERS = [
    (name, key)
    for name in kernels.LOSSES
    for key, default in kernels.constants(name).items()
    if isinstance(default, float)
]
LEARNED = [("n_pair", "scale"), ("all_pairs", "scale"), ("supervised_contrastive", "temperature")]


def batch(rows: int = 24, columns: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, columns, generator=generator), torch.arange(rows) // 3


def gradient(loss: Callable[..., Tensor], x: Tensor, y: Tensor, **options: object) -> Tensor:
    x = x.clone().requires_grad_()
    loss(x, y, **options).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize(("name", "key"), [pair for pair in NUMBERS if pair not in LEARNED])
def test_a_constant_waiting_for_a_gradient_is_refused(name: str, key: str) -> None:
    x, y = batch()
    waiting = torch.tensor(0.25, requires_grad=True)
    with pytest.raises(ValueError, match=f"{key}: a tensor that requires grad.*pass float"):
        kernels.LOSSES[name](x, y % 8, **{key: waiting})


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_a_tensor_is_taken_as_its_number(name: str, key: str) -> None:
    x, y = batch()
    found, expected = (kernels.LOSSES[name](x, y % 8, **{key: v}) for v in (torch.tensor([0.25]), 0.25))
    assert torch.equal(found, expected)
    for bad in (torch.tensor([0.1, 0.2]), "0.3", None, torch.tensor(torch.nan)):
        with pytest.raises(ValueError, match=f"{key}: expected"):
            kernels.LOSSES[name](x, y % 8, **{key: bad})


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "key"), LEARNED)
def test_a_learned_scale_gets_its_gradient(name: str, key: str, backend: str, normalize: bool) -> None:
    x, y = batch()
    x, step, value = x.double(), 1e-5, torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(number: object, rows: Tensor = x) -> Tensor:
        return kernels.LOSSES[name](rows, y, backend=backend, normalize=normalize, **{key: number})

    rows, same = (x.clone().requires_grad_() for _ in range(2))
    found, expected = loss(value, rows), loss(0.7, same)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(rows.grad, same.grad)
    difference = (loss(0.7 + step) - loss(0.7 - step)) / (2 * step)
    assert value.grad is not None and float(value.grad) == pytest.approx(float(difference), rel=1e-6)


def test_a_learned_scale_is_checked_and_may_be_compiled() -> None:
    x, y = batch()
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="scale: expected a finite number above 0"):
            kernels.n_pair_loss(x, y, scale=torch.tensor(bad, requires_grad=True))
    with pytest.raises(ValueError, match="scale: a tensor that requires grad"):
        kernels.all_pairs_loss(x, y, scale=torch.ones((), requires_grad=True), margin=0.1)
    torch._dynamo.reset()
    compiled = torch.compile(kernels.supervised_contrastive_loss, backend="aot_eager", fullgraph=True)
    values = [torch.tensor(0.3, requires_grad=True) for _ in range(2)]
    for loss, value in zip((compiled, kernels.supervised_contrastive_loss), values, strict=True):
        loss(x, y, temperature=value).backward()
    torch.testing.assert_close(values[0].grad, values[1].grad)


def test_a_gradient_penalty_under_compile_is_not_dropped() -> None:
    x, y = batch(12)

    def penalised(x: Tensor) -> Tensor:
        loss = kernels.ranking_loss(x, y, backend="chunked")
        (of_x,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + of_x.square().sum()

    for backend in ("eager", "aot_eager"):
        torch._dynamo.reset()
        rows = x.clone().requires_grad_()
        loss = torch.compile(lambda x: kernels.ranking_loss(x, y, backend="chunked"), backend=backend)(rows)
        with pytest.raises(RuntimeError, match=r"second derivative|double backward"):
            (of_x,) = torch.autograd.grad(loss, rows, create_graph=True)
            of_x.square().sum().backward()
        torch._dynamo.reset()
        with pytest.raises(Exception, match=r"second derivative|double backward"):
            torch.compile(penalised, backend=backend)(x.clone().requires_grad_()).backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_value_below_the_floor_on_nearly_collapsed_rows(backend: str) -> None:
    """A gap of 2^-24 is inside the margin, though its exponential rounds to 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(32, 8) + 2e-4 * torch.randn(32, 8, generator=generator)
    y = torch.arange(32) // 4
    loss, statistics = kernels.ranking_loss_with_statistics(x, y, margin=0.0, pull=0.0, backend=backend)
    assert float(loss) >= float(statistics.floor) * (1 - 1e-6)
    exact, exact_statistics = kernels.ranking_loss_with_statistics(
        x, y, margin=0.0, pull=0.0, backend="reference"
    )
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics.active_negative_fraction, exact_statistics.active_negative_fraction)


@pytest.mark.parametrize("backend", BACKENDS)
def test_n_pair_of_long_rows(backend: str) -> None:
    x, y = batch(64, 32)
    x = torch.nn.functional.normalize(x.double()) * 1e4
    y = torch.arange(64) // 4
    exact = gradient(kernels.n_pair_loss, x, y, normalize=False, backend="reference")
    found = gradient(kernels.n_pair_loss, x.float(), y, normalize=False, backend=backend)
    assert (found - exact).norm() <= 1e-3 * exact.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_backward_inside_autocast_changes_nothing(name: str, backend: str) -> None:
    x, y = batch()
    outside = gradient(kernels.LOSSES[name], x, y, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradient(kernels.LOSSES[name], x, y, backend=backend)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize(
    ("labels", "advice"),
    [
        ([0, 0, 1, 1], "got list; pass torch.as_tensor(labels)"),
        (["a", "a", "b", "b"], "pass their numbers: torch.tensor("),
        (np.array([0, 0, 1, 1]), "got ndarray; pass torch.as_tensor(labels)"),
        (np.array(["a", "a", "b", "b"]), "pass their numbers"),
        (torch.tensor([0.0, 0.0, 1.0, 1.0]), "pass labels.long()"),
        (torch.tensor([[0], [0], [1], [1]]), "pass labels.squeeze(1)"),
        (torch.eye(4)[[0, 0, 1, 1]], "one-hot, pass labels.argmax(1)"),
        (torch.tensor(3), "pass labels[None]"),
    ],
)
def test_labels_that_are_none_say_what_to_pass(labels: object, advice: str) -> None:
    with pytest.raises(ValueError) as raised:
        kernels.ranking_loss(torch.zeros(4, 2), labels)  # type: ignore[arg-type]
    assert advice in str(raised.value) and "\n" not in str(raised.value)


def test_rows_that_are_none_say_what_to_pass() -> None:
    labels = torch.tensor([0, 0])
    for rows, advice in [
        ([[0.0, 1.0], [1.0, 0.0]], "torch.as_tensor(embeddings)"),
        ([torch.zeros(2), torch.zeros(2)], "torch.stack(embeddings)"),
        (np.zeros((2, 2), dtype=np.float32), "torch.as_tensor(embeddings)"),
    ]:
        with pytest.raises(ValueError, match=r"embeddings: expected a torch\.Tensor") as raised:
            kernels.n_pair_loss(rows, labels)  # type: ignore[arg-type]
        assert advice in str(raised.value)


def test_a_group_that_is_none() -> None:
    x, y = batch()
    with pytest.raises(ValueError, match="group: expected a torch"):
        kernels.ranking_loss(x, y, group="world")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", kernels.LOSSES)
def test_no_rows_under_compile(name: str) -> None:
    torch._dynamo.reset()
    rows, labels = torch.zeros(0, 8, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    loss = torch.compile(kernels.LOSSES[name], backend="aot_eager")(rows, labels)
    loss.backward()
    assert float(loss) == 0 and rows.grad is not None and rows.grad.shape == (0, 8)


@pytest.mark.parametrize("options", [{"reduction": "sum"}, {"ignore_index": 2}])
@pytest.mark.parametrize("name", ["ranking", "batch_hard", "circle", "softmax"])
def test_options_under_compile(name: str, options: dict[str, object]) -> None:
    torch._dynamo.reset()
    x, y = batch()
    compiled = torch.compile(kernels.LOSSES[name], backend="aot_eager", fullgraph=True)
    found, expected = (gradient(loss, x, y % 8, **options) for loss in (compiled, kernels.LOSSES[name]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", kernels.LOSSES)
def test_torch_func_is_the_references(name: str) -> None:
    x, y = batch()
    y %= 8

    def loss(rows: Tensor, backend: str = "reference") -> Tensor:
        return kernels.LOSSES[name](rows, y, backend=backend)

    found = torch.func.grad(loss)(x)
    torch.testing.assert_close(found, gradient(kernels.LOSSES[name], x, y, backend="reference"))
    both = torch.func.vmap(loss)(torch.stack([x, 2 * x]))
    torch.testing.assert_close(both, torch.stack([loss(x), loss(2 * x)]))
    assert torch.func.hessian(loss)(x).isfinite().all()
    with pytest.raises(
        RuntimeError, match=r'torch\.func: not by the chunked backend; use backend="reference"'
    ):
        torch.func.grad(lambda rows: loss(rows, "chunked"))(x)
