"""Candidates that are not the batch (`reference=`): against float64 loops, over ranks, and what they may
cost.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import maskreid_kernels as kernels
from gloo import run_ranks
from maskreid_kernels import blocks
from maskreid_kernels.modules import LossModule

BACKENDS = ("reference", "chunked")
PAIR_LOSSES = [name for name in kernels.LOSSES if name != "softmax"]
MODULES: dict[str, Callable[..., LossModule]] = {
    "ranking": kernels.RankingLoss,
    "batch_hard": kernels.BatchHardLoss,
    "n_pair": kernels.NPairLoss,
    "all_pairs": kernels.AllPairsLoss,
    "circle": kernels.CircleLoss,
    "supervised_contrastive": kernels.SupervisedContrastiveLoss,
}
# Every branch of the losses: each with constants that leave no term out.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ranking", {"margin": 0.3, "pull": 1.5}),
    ("ranking", {"margin": 0.2, "negatives": "violating"}),
    ("ranking", {"margin": 0.2, "normalize": False}),
    ("batch_hard", {"margin": 0.7}),
    ("batch_hard", {"margin": "soft", "distance": "squared_euclidean", "normalize": True}),
    ("batch_hard", {"margin": 0.4, "distance": "cosine"}),
    ("n_pair", {"scale": 3.0}),
    ("n_pair", {"scale": 2.0, "normalize": False}),
    ("all_pairs", {"scale": 2.0, "margin": 0.1}),
    ("circle", {"gamma": 8.0}),
    ("supervised_contrastive", {"temperature": 0.3}),
]
Pair = tuple[Tensor, Tensor]


# The losses by their formulas, one anchor at a time (kernels/README.md, Maths).


def unit(x: Tensor) -> Tensor:
    return x / x.norm() if x.norm() > 0 else x


def ranking(s: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    least = min(s)
    gaps = [value - least + c["margin"] for value in n]
    if c["negatives"] == "violating":
        gaps = [gap for gap in gaps if gap > 0]
    push = torch.log(sum((gap.clamp(min=0).exp() for gap in gaps), torch.ones_like(least)))
    pulled: Tensor = c["pull"] / (2 * len(s)) * sum((value - 1) ** 2 for value in s)
    return push + pulled


def n_pair(s: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    values = [torch.log(1 + sum((c["scale"] * (b - a)).exp() for b in n)) for a in s]
    return sum(values[1:], values[0]) / len(s)


def all_pairs(s: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    return torch.log(1 + sum((c["scale"] * (b - a + c["margin"])).exp() for a in s for b in n))


def circle(s: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    m, gamma = c["margin"], c["gamma"]
    pushed = sum((gamma * (b.detach() + m).clamp(min=0) * (b - m)).exp() for b in n)
    pulled = sum((-gamma * (1 + m - a.detach()).clamp(min=0) * (a - 1 + m)).exp() for a in s)
    return torch.log(1 + pushed * pulled)


def supervised_contrastive(s: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    t = c["temperature"]
    mean: Tensor = sum(s[1:], s[0]) / (len(s) * t)
    return torch.log(sum((value / t).exp() for value in s + n)) - mean


OF_SIMILARITIES: dict[str, Callable[..., Tensor]] = {
    one.__name__: one for one in (ranking, n_pair, all_pairs, circle, supervised_contrastive)
}


def distance(a: Tensor, b: Tensor, kind: str) -> Tensor:
    if kind == "cosine":
        return 1 - a @ b
    square = ((a - b) ** 2).sum()
    if kind == "squared_euclidean":
        return square
    return square.sqrt() if square > 0 else square  # its gradient at 0 is 0


def batch_hard(a: Tensor, p: list[Tensor], n: list[Tensor], c: dict[str, Any]) -> Tensor:
    gap = max(distance(a, b, c["distance"]) for b in p) - min(distance(a, b, c["distance"]) for b in n)
    return torch.log(1 + gap.exp()) if c["margin"] == "soft" else (gap + c["margin"]).clamp(min=0)


def loop(name: str, x: Tensor, y: Tensor, reference: Pair, **options: Any) -> dict[int, Tensor]:
    """L(k) of every valid anchor."""
    c = {**kernels.constants(name), **options}
    rows, labels = reference
    if c["normalize"] or c.get("distance") == "cosine":
        x, rows = (torch.stack([unit(row) for row in one]) if len(one) else one for one in (x, rows))
    values = {}
    for k in range(len(x)):
        p = [rows[i] for i in range(len(rows)) if labels[i] == y[k]]
        n = [rows[i] for i in range(len(rows)) if labels[i] != y[k]]
        if not p or not n:
            continue
        if name == "batch_hard":
            values[k] = batch_hard(x[k], p, n, c)
        else:
            values[k] = OF_SIMILARITIES[name]([x[k] @ row for row in p], [x[k] @ row for row in n], c)
    return values


def rows_of(count: int, seed: int, columns: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, columns, generator=generator, dtype=torch.float64)


def labels_of(count: int, identities: int, seed: int) -> Tensor:
    return torch.randint(identities, (count,), generator=torch.Generator().manual_seed(seed)) * 3 - 4


def duplicates() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Similarities and distances that are equal to the bit; some references are anchors' rows."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(-2, 3, (6, 4), generator=generator).double() / 2
    return rows, torch.arange(6) // 2, rows.repeat(3, 1), torch.arange(18) % 6 // 2


SITUATIONS: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {
    "ragged": (rows_of(11, 0), labels_of(11, 4, 1), rows_of(19, 2), labels_of(19, 4, 3)),
    "few_references": (rows_of(13, 4), labels_of(13, 3, 5), rows_of(4, 6), torch.tensor([-4, -1, -1, 2])),
    "one_anchor": (
        rows_of(1, 7),
        torch.tensor([5]),
        rows_of(9, 8),
        torch.tensor([5, 1, 2, 5, 3, 1, 5, 2, 1]),
    ),
    "some_without_positives": (rows_of(6, 9), torch.arange(6), rows_of(5, 10), torch.tensor([0, 0, 2, 4, 9])),
    "no_positives": (rows_of(6, 11), torch.zeros(6).long(), rows_of(5, 12), torch.ones(5).long()),
    "one_identity": (rows_of(6, 13), torch.ones(6).long(), rows_of(5, 14), torch.ones(5).long()),
    "no_references": (rows_of(6, 15), torch.arange(6) % 2, rows_of(0, 0), torch.zeros(0).long()),
    "no_rows": (rows_of(0, 0), torch.zeros(0).long(), rows_of(5, 16), torch.arange(5) % 2),
    "duplicates": duplicates(),
}


def step(
    name: str, x: Tensor, y: Tensor, r: Tensor, z: Tensor, **options: Any
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, r = x.clone().requires_grad_(), r.clone().requires_grad_()
    value = kernels.LOSSES[name](x, y, reference=(r, z), **options)
    value.sum().backward()
    return value.detach(), x.grad, r.grad


@pytest.fixture(params=["one_tile", "many_tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with blocks of three anchors against five references, so that nothing fits into one."""
    if request.param == "many_tiles":
        small_blocks(monkeypatch)


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "TILE_COLUMNS", 5)
    monkeypatch.setattr(blocks, "CACHE_BYTES", 1)
    monkeypatch.setattr(blocks, "FAST_ROWS", 3)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_of_both_kinds_of_rows(
    backend: str, name: str, options: dict[str, Any], situation: str
) -> None:
    x, y, r, z = SITUATIONS[situation]
    if situation == "duplicates":
        options = {**options, "normalize": False}
    slow_x, slow_r = x.clone().requires_grad_(), r.clone().requires_grad_()
    values = loop(name, slow_x, y, (slow_r, z), **options)
    zero = (slow_x.sum() + slow_r.sum()) * 0
    for reduction in ("mean", "sum", "none"):
        slow_x.grad = slow_r.grad = None
        if reduction == "none":
            expected = torch.stack([values.get(k, zero) for k in range(len(x))]) if len(x) else zero.expand(0)
        else:
            total = zero + sum(values.values())
            expected = total / max(len(values), 1) if reduction == "mean" else total
        expected.sum().backward(retain_graph=True)
        found = step(name, x, y, r, z, backend=backend, reduction=reduction, **options)
        for own, slow in zip(found, (expected, slow_x.grad, slow_r.grad), strict=True):
            assert slow is not None
            torch.testing.assert_close(own, slow.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] != "circle"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_derivatives(backend: str, name: str, options: dict[str, Any]) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    x, r = x[:6].clone().requires_grad_(), r[:11].clone().requires_grad_()

    def loss(x: Tensor, r: Tensor, **more: Any) -> Tensor:
        return kernels.LOSSES[name](x, y[:6], reference=(r, z[:11]), backend=backend, **options, **more)

    assert torch.autograd.gradcheck(loss, (x, r))
    assert torch.autograd.gradcheck(lambda x, r: loss(x, r, reduction="none"), (x, r))
    if backend == "reference" and options.get("distance") != "euclidean":
        assert torch.autograd.gradgradcheck(loss, (x, r))
    if backend == "chunked":
        with pytest.raises(RuntimeError, match='no second derivative; use backend="reference"'):
            torch.autograd.grad(loss(x, r), (x, r), create_graph=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranking_statistics(backend: str) -> None:
    x, y, r, z = SITUATIONS["some_without_positives"]
    call: dict[str, Any] = {"margin": 0.3, "backend": backend, "reference": (r, z)}
    loss, found = kernels.ranking_loss_with_statistics(x, y, **call)
    torch.testing.assert_close(loss, kernels.ranking_loss(x, y, **call))
    u, v = F.normalize(x), F.normalize(r)
    anchors = [k for k in range(len(x)) if (z == y[k]).any()]
    inside, negatives = [], []
    for k in anchors:
        least = (v[z == y[k]] @ u[k]).min()
        inside.append(int(((v[z != y[k]] @ u[k]) - least + 0.3 > 0).sum()))
        negatives.append(int((z != y[k]).sum()))
    assert int(found.valid_anchors) == len(anchors) == 3
    assert float(found.active_negative_fraction) == pytest.approx(sum(inside) / sum(negatives))
    assert float(found.floor) == pytest.approx(sum(math.log(1 + n) for n in negatives) / len(anchors))


# Where the usual loss, or another, can be compared.


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_the_usual_loss_is_each_row_against_the_others(name: str) -> None:
    y = torch.arange(12) // 3
    rows, same = (rows_of(12, 20).requires_grad_() for _ in range(2))
    usual = kernels.LOSSES[name](rows, y, reduction="none")
    usual.mean().backward()
    for backend in BACKENDS:
        same.grad = None
        values = []
        for k in range(12):
            others = torch.arange(12) != k
            own = slice(k, k + 1)
            reference = (same[others], y[others])
            values.append(
                kernels.LOSSES[name](same[own], y[own], reference=reference, backend=backend).reshape(())
            )
        torch.stack(values).mean().backward()
        torch.testing.assert_close(torch.stack(values), usual)
        torch.testing.assert_close(same.grad, rows.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_and_text_is_the_cross_entropy_of_their_logits(backend: str) -> None:
    """CLIP's loss: row i of the one kind belongs to row i of the other. The temperature is learned."""
    images, texts = rows_of(9, 21), rows_of(9, 22)
    labels = torch.arange(9)
    steps = []
    for ours in (True, False):
        a, b = images.clone().requires_grad_(), texts.clone().requires_grad_()
        temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        if ours:
            call: dict[str, Any] = {"temperature": temperature, "backend": backend}
            loss = kernels.supervised_contrastive_loss(a, labels, reference=(b, labels), **call)
            loss = loss + kernels.supervised_contrastive_loss(b, labels, reference=(a, labels), **call)
        else:
            logits = F.normalize(a) @ F.normalize(b).t() / temperature
            loss = F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)
        loss.backward()
        steps.append((loss.detach(), a.grad, b.grad, temperature.grad))
    for found, expected in zip(*steps, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "key"), [("n_pair", "scale"), ("all_pairs", "scale"), ("supervised_contrastive", "temperature")]
)
def test_a_learned_scale(name: str, key: str, backend: str, normalize: bool) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    value = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(number: Any, rows: Tensor, references: Tensor) -> Tensor:
        call = {"backend": backend, "normalize": normalize, key: number}
        return kernels.LOSSES[name](rows, y, reference=(references, z), **call)

    learned, fixed = ([one.clone().requires_grad_() for one in (x, r)] for _ in range(2))
    found, expected = loss(value, *learned), loss(0.7, *fixed)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    for own, other in zip(learned, fixed, strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    difference = (loss(0.7 + 1e-5, x, r) - loss(0.7 - 1e-5, x, r)) / 2e-5
    assert value.grad is not None and float(value.grad) == pytest.approx(float(difference), rel=1e-6)


# Options.


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_rows_of_both_kinds(backend: str, name: str, reduction: str) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    kept_x, kept_r = torch.arange(11) % 4 != 1, torch.arange(19) % 5 != 2
    marked_y, marked_z = y.masked_fill(~kept_x, -9), z.masked_fill(~kept_r, -9)
    call = {"backend": backend, "reduction": reduction}
    value, of_x, of_r = step(name, x, marked_y, r, marked_z, ignore_index=-9, **call)
    expected, of_kept_x, of_kept_r = step(name, x[kept_x], y[kept_x], r[kept_r], z[kept_r], **call)
    assert of_x is not None and of_r is not None
    assert not of_x[~kept_x].any() and not of_r[~kept_r].any()
    if reduction == "none":
        assert value.shape == (11,) and not value[~kept_x].any()
        value = value[kept_x]
    for found, right in zip(
        (value, of_x[kept_x], of_r[kept_r]), (expected, of_kept_x, of_kept_r), strict=True
    ):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_auto_is_chunked(name: str) -> None:
    situation = SITUATIONS["ragged"]
    for found, expected in zip(
        step(name, *situation), step(name, *situation, backend="chunked"), strict=True
    ):
        assert found is not None and expected is not None and torch.equal(found, expected)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_and_autocast(backend: str, name: str) -> None:
    """A bank may be kept in fewer bits than the batch. Each kind of rows has its gradient in its own
    dtype."""
    x, y, r, z = SITUATIONS["ragged"]
    exact = step(name, x.bfloat16().double(), y, r.bfloat16().double(), z, backend=backend)
    for dtypes in [
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
    ]:
        rows, references = (one.bfloat16().to(dtype) for one, dtype in zip((x, r), dtypes, strict=True))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = step(name, rows, y, references, z, backend=backend)
        assert found[0].dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
        for own, right, dtype in zip(found, exact, (found[0].dtype, *dtypes), strict=True):
            assert own is not None and right is not None and own.dtype == dtype
            tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
            assert (own.double() - right).norm() <= tolerance * right.norm()


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_modules(name: str) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    module = MODULES[name](reduction="sum")
    expected = kernels.LOSSES[name](x, y, reduction="sum", reference=(r, z))
    assert torch.equal(module(x, y, reference=(r, z)), expected)
    assert torch.equal(module(x, y), kernels.LOSSES[name](x, y, reduction="sum"))
    with pytest.raises(TypeError, match=f"reference is of the call: {MODULES[name].__name__}"):
        MODULES[name](reference=(r, z))


@pytest.mark.parametrize("name", ["n_pair", "all_pairs", "supervised_contrastive"])
def test_modules_that_learn(name: str) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    module = MODULES[name](learnable=True)
    module(x, y, reference=(r, z)).backward()
    (parameter,) = module.parameters()
    assert parameter.grad is not None and float(parameter.grad) != 0


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_torch_func_is_the_references(name: str) -> None:
    x, y, r, z = SITUATIONS["ragged"]

    def loss(rows: Tensor, references: Tensor, backend: str = "reference") -> Tensor:
        return kernels.LOSSES[name](rows, y, reference=(references, z), backend=backend)

    _, of_x, of_r = step(name, x, y, r, z, backend="reference")
    for found, expected in zip(torch.func.grad(loss, (0, 1))(x, r), (of_x, of_r), strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(
        RuntimeError, match=r'torch\.func: not by the chunked backend; use backend="reference"'
    ):
        torch.func.grad(lambda rows: loss(rows, r, "chunked"))(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_broken_row_is_not_hidden(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    x, y, r, z = SITUATIONS["ragged"]
    for place in range(0, 19, 3):
        broken = r.clone()
        broken[place, 2] = torch.nan
        values = kernels.LOSSES[name](x, y, reference=(broken, z), backend=backend, reduction="none")
        assert values.isnan().all()  # it is a candidate of every anchor


@pytest.mark.parametrize("name", ["n_pair", "all_pairs", "supervised_contrastive"])
def test_long_rows_in_float32(name: str) -> None:
    """Similarities of 1e8, beside which float32 does not hold the share that pulls an anchor."""
    x, r = (F.normalize(rows_of(count, seed, 32)) * 1e4 for count, seed in ((24, 60), (48, 61)))
    y, z = torch.arange(24) % 8, torch.arange(48) % 8
    exact = step(name, x, y, r, z, backend="reference", normalize=False)
    found = step(name, x.float(), y, r.float(), z, backend="chunked", normalize=False)
    for own, right in zip(found, exact, strict=True):
        assert own is not None and right is not None
        assert (own - right).norm() <= 1e-3 * right.norm()


# Under torch.compile it is one operator.


@pytest.mark.parametrize("name", ["ranking", "batch_hard", "circle"])
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    x, y, r, z = (one.float() if one.is_floating_point() else one for one in SITUATIONS["ragged"])

    def loss(rows: Tensor, references: Tensor) -> Tensor:
        return 2 * kernels.LOSSES[name](rows, y, reference=(references, z))

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for wanted in [(True, True), (True, False), (False, True)]:
        steps = []
        for function in (loss, compiled):
            leaves = [one.clone().requires_grad_(w) for one, w in zip((x, r), wanted, strict=True)]
            value = function(*leaves)
            value.backward()
            steps.append([value.detach(), *(leaf.grad for leaf in leaves)])
        assert [one is None for one in steps[1]] == [False, *(not w for w in wanted)]
        for found, expected in zip(*steps, strict=True):
            if found is not None:
                torch.testing.assert_close(found, expected)


def test_compiled_has_no_second_derivative() -> None:
    torch._dynamo.reset()
    x, y, r, z = SITUATIONS["ragged"]
    rows = x.clone().requires_grad_()
    compiled = torch.compile(kernels.n_pair_loss, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=r"second derivative|double backward|create_graph"):
        (of_rows,) = torch.autograd.grad(compiled(rows, y, reference=(r, z)), rows, create_graph=True)
        of_rows.square().sum().backward()


def test_compiled_with_the_rows_themselves_and_what_is_refused() -> None:
    torch._dynamo.reset()
    x, y, r, z = SITUATIONS["ragged"]
    compiled = torch.compile(kernels.n_pair_loss, backend="aot_eager", fullgraph=True)
    gradients = []
    for function in (compiled, kernels.n_pair_loss):
        both = x.clone().requires_grad_()
        function(both, y, reference=(both, y)).backward()
        gradients.append(both.grad)
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match="backend 'dense' takes no reference="):
        compiled(x, y, reference=(r, z), backend="dense")
    with pytest.raises(ValueError, match=r"reference\[0\]: expected a 2-d float tensor"):
        compiled(x, y, reference=(r.long(), z))


@pytest.mark.parametrize("situation", ["no_references", "no_rows", "no_positives"])
def test_compiled_without_an_anchor(situation: str) -> None:
    torch._dynamo.reset()
    x, y, r, z = (one.clone() for one in SITUATIONS[situation])
    compiled = torch.compile(kernels.ranking_loss, backend="aot_eager", fullgraph=True)
    loss = compiled(x.requires_grad_(), y, reference=(r.requires_grad_(), z))
    loss.backward()
    assert float(loss) == 0
    for rows in (x, r):
        assert rows.grad is not None and rows.grad.shape == rows.shape and not rows.grad.any()


def test_the_operator_is_registered_as_torch_wants_it() -> None:
    x, y, r, z = SITUATIONS["ragged"]
    packed = {"words": {"negatives": "all", "normalize": True}, "numbers": ["margin", "pull"]}
    options = json.dumps(packed | {"call": ["chunked", "auto", "mean", None]})
    rows = (x.clone().requires_grad_(), y, r.clone().requires_grad_(), z)
    torch.library.opcheck(
        torch.ops.maskreid_kernels.crossed_loss_with_gradient.default,
        (*rows, "ranking", options, [0.15, 2.0], "", True, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_compiled_with_options() -> None:
    torch._dynamo.reset()
    x, y, r, z = SITUATIONS["ragged"]
    r = r.float()
    value = torch.tensor(0.3, requires_grad=True)

    def loss(x: Tensor, r: Tensor) -> Tensor:
        call: dict[str, Any] = {"reference": (r, z), "ignore_index": 2, "reduction": "sum"}
        statistics = kernels.ranking_loss_with_statistics(x, y, **call)[1]
        learned = kernels.supervised_contrastive_loss(x, y, temperature=value, **call)
        return kernels.batch_hard_loss(x, y, **call) + learned + statistics.floor

    steps = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        value.grad = None
        leaves = [one.clone().requires_grad_() for one in (x, r)]
        found = function(*leaves)
        found.backward()
        steps.append([found.detach(), *(leaf.grad for leaf in leaves), value.grad])
    for own, right in zip(*steps, strict=True):
        torch.testing.assert_close(own, right)


# What it may cost.


class Products(TorchDispatchMode):
    """Multiplications of all matrix products."""

    multiplications = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.overloadpacket.__name__.rstrip("_")
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            a, b = [one for one in arguments if isinstance(one, Tensor)][-2:]
            self.multiplications += a.numel() * b.shape[-1]
        return function(*arguments, **(keywords or {}))


def products(name: str, wanted: tuple[bool, bool], backend: str) -> float:
    """Those of a step, each of all anchors with all references."""
    x, y, r, z = rows_of(24, 30, 8), torch.arange(24) % 6, rows_of(40, 31, 8), torch.arange(40) % 6
    leaves = [one.requires_grad_(w) for one, w in zip((x, r), wanted, strict=True)]
    with Products() as counter:
        kernels.LOSSES[name](leaves[0], y, reference=(leaves[1], z), backend=backend).backward()
    assert [leaf.grad is not None for leaf in leaves] == list(wanted)
    return float(counter.multiplications / (24 * 40 * 8))


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_references_without_a_gradient_cost_none(backend: str, name: str) -> None:
    """One product in the forward; in the backward one for each gradient, and one for S again in blocks."""
    again = {"reference": 1, "chunked": 2}[backend]
    mined = name == "batch_hard"  # no product in its backward
    assert products(name, (True, False), backend) == (1 if mined else again + 1)
    assert products(name, (False, True), backend) == (1 if mined else again + 1)
    assert products(name, (True, True), backend) == (1 if mined else again + 2)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that an operator made."""

    found = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        made = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.found = max(self.found, tensor.numel() * tensor.element_size())
        return made


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_no_matrix_of_all_anchors_and_references(name: str) -> None:
    x, r = rows_of(200, 32, 4).float().requires_grad_(), rows_of(100_000, 33, 4).float()
    y, z = torch.arange(200) % 50, torch.arange(100_000) % 5000
    with Largest() as largest:
        kernels.LOSSES[name](x, y, reference=(r, z)).backward()
    assert x.grad is not None and x.grad.any()
    assert largest.found <= blocks.WORKSPACE_BYTES < 200 * 100_000 * 4


# What is refused, in one line.

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


# Over ranks.

# Rows of the two ranks: (anchors, references).
SPLITS = [((5, 8), (9, 12)), ((13, 0), (0, 21)), ((4, 9), (21, 0)), ((6, 7), (0, 0)), ((0, 0), (9, 12))]


def check_rows(
    name: str, options: dict[str, Any], backend: str, split: Any, learning: tuple[bool, bool]
) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    count, candidates = (sum(part) for part in split)
    x, r = rows_of(count, 40).float(), rows_of(candidates, 41).float()
    y, z = labels_of(count, 4, 42), labels_of(candidates, 4, 43)
    own, own_r = (slice(sum(part[:rank]), sum(part[: rank + 1])) for part in split)
    expected, of_x, of_r = step(name, x, y, r, z, **options)  # one process, everything
    assert of_x is not None and of_r is not None
    rows, references = x[own].clone().requires_grad_(), r[own_r].clone().requires_grad_(learning[rank])
    call = {"backend": backend, "group": dist.group.WORLD, **options}
    value = kernels.LOSSES[name](rows, y[own], reference=(references, z[own_r]), **call)
    value.backward()
    where = f"{name} {options} {backend} {split} rank {rank}"
    assert abs(float(value) - float(expected)) <= 1e-6 * max(1.0, float(expected)), where
    values = [torch.zeros(()) for _ in range(world)]
    dist.all_gather(values, value.detach())
    assert all(torch.equal(one, values[0]) for one in values), f"{where}: ranks differ in value"
    # Compared as one vector over all ranks: a share that is nearly zero has no relative error of its own.
    for leaf, right, mine, wanted in ((rows, of_x, own, True), (references, of_r, own_r, learning[rank])):
        assert (leaf.grad is not None) == wanted, where
        error = torch.zeros_like(right)
        if leaf.grad is not None:
            error[mine] = leaf.grad / world - right[mine]
        dist.all_reduce(error)
        assert error.norm() <= 1e-6 * right.norm().clamp(min=1e-6), where


def raised_by(loss: str, reference: object, **options: Any) -> str:
    x, y = rows_of(6, 50), torch.arange(6) % 3
    with pytest.raises(ValueError) as raised:
        kernels.LOSSES[loss](x, y, reference=reference, group=dist.group.WORLD, **options)
    line = str(raised.value)
    lines: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(lines, line)
    assert lines == [line] * len(lines)
    return line


def check_refusals(rank: int, world: int) -> None:
    last = rank == world - 1
    me = f"rank {world - 1} of the group"
    fine = (rows_of(5, 51), torch.arange(5))
    for loss in PAIR_LOSSES:
        line = raised_by(loss, (fine[0], fine[1][:4]) if last else fine)
        assert line == f"{me}: reference[1]: 4 entries for 5 rows of reference[0]; pass one per row"
        assert raised_by(loss, fine[0] if last else fine).startswith(f"{me}: reference: expected a pair")
        line = raised_by(loss, fine, backend="dense" if last else "chunked")
        assert line == f"{me}: backend 'dense' takes no reference=; use backend=\"chunked\""
        line = raised_by(loss, None if last else fine)
        assert "the ranks' options differ" in line and "reference=None" in line and me in line
        line = raised_by(loss, (fine[0].float(), fine[1]) if last else fine)
        assert "reference='rows of torch.float32'" in line and me in line
    temperature = torch.tensor(0.1, requires_grad=True)
    line = raised_by("supervised_contrastive", 7 if last else fine, temperature=temperature)
    assert line.startswith(f"{me}: reference: expected a pair (rows, labels), got int")


def check_no_anchors_travel(rank: int, world: int) -> None:
    """Anchors' rows are exchanged only where some rank's references wait for a gradient."""
    x, y, r, z = rows_of(7, 52), torch.arange(7) % 3, rows_of(5, 53), torch.arange(5) % 3
    for name in PAIR_LOSSES:
        numbers = []
        for learning in (False, True):
            sent = 0
            gather = dist.all_gather_into_tensor

            def counting(out: Tensor, own: Tensor, gather: Any = gather, **words: Any) -> Any:
                nonlocal sent
                sent += own.numel()
                return gather(out, own, **words)

            dist.all_gather_into_tensor = counting  # type: ignore[assignment]
            try:
                references = r.clone().requires_grad_(learning and rank == 0)
                rows = x.clone().requires_grad_()
                loss = kernels.LOSSES[name](rows, y, reference=(references, z), group=dist.group.WORLD)
                in_forward = sent
                loss.backward()
                assert sent == in_forward, "a collective in the backward"
            finally:
                dist.all_gather_into_tensor = gather
            numbers.append(sent)
        assert numbers[1] - numbers[0] == x.numel(), name


def run_rank(rank: int, world: int) -> None:
    for name, options in CASES:
        for backend in BACKENDS:
            for split in SPLITS:
                check_rows(name, options, backend, split, (True, True))
            check_rows(name, options, backend, SPLITS[0], (False, False))
            check_rows(name, options, backend, SPLITS[0], (False, True))
        check_rows(
            name, {**options, "reduction": "sum", "ignore_index": 2}, "chunked", SPLITS[0], (True, True)
        )
    check_refusals(rank, world)
    check_no_anchors_travel(rank, world)
    check_learned(rank, world)
    check_compiled(rank, world)
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_blocks(monkeypatch)
        for name, options in CASES:
            check_rows(name, options, "chunked", SPLITS[0], (True, True))


def check_compiled(rank: int, world: int) -> None:
    x, y, r, z = SITUATIONS["ragged"]
    own, own_r = (slice(0, 3), slice(0, 11)) if rank == 0 else (slice(3, 11), slice(11, 19))
    steps = []
    for loss in (kernels.n_pair_loss, torch.compile(kernels.n_pair_loss, backend="aot_eager")):
        rows, references = x[own].clone().requires_grad_(), r[own_r].clone().requires_grad_(rank == 0)
        loss(rows, y[own], reference=(references, z[own_r]), group=dist.group.WORLD).backward()
        steps.append((rows.grad, references.grad))
    torch.testing.assert_close(steps[1][0], steps[0][0])
    if rank == 0:
        torch.testing.assert_close(steps[1][1], steps[0][1])


def check_learned(rank: int, world: int) -> None:
    """A learned temperature's gradient, averaged over the ranks, is that of one process."""
    x, y, r, z = SITUATIONS["ragged"]
    own, own_r = (slice(0, 3), slice(0, 11)) if rank == 0 else (slice(3, 11), slice(11, 19))
    for backend in BACKENDS:
        alone, shared = (torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        call: dict[str, Any] = {"backend": backend, "temperature": alone}
        kernels.supervised_contrastive_loss(x, y, reference=(r, z), **call).backward()
        call |= {"temperature": shared, "group": dist.group.WORLD}
        kernels.supervised_contrastive_loss(x[own], y[own], reference=(r[own_r], z[own_r]), **call).backward()
        assert alone.grad is not None and shared.grad is not None
        dist.all_reduce(shared.grad)
        torch.testing.assert_close(shared.grad / world, alone.grad)


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    run_ranks(run_rank, 2, tmp_path)


# The examples of the README.


def test_the_readmes_examples_run() -> None:
    text = (Path(__file__).parent.parent / "kernels" / "README.md").read_text()
    examples = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "reference=" in code]
    assert len(examples) == 2
    for code in examples:
        exec(code, {})
