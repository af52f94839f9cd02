"""The adapters against the packages whose calls they take, on the same rows: values and gradients.

Without a package its tests are skipped: `make test-adapters` installs them into an environment of its own.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import maskreid_kernels as kernels
from gloo import run_ranks
from libraries import Embedder, package
from maskreid_kernels.adapters import open_metric_learning as oml_form
from maskreid_kernels.adapters import pytorch_metric_learning as pml_form
from maskreid_kernels.adapters import sentence_transformers as st_form

Call = Callable[[Tensor, Tensor], Tensor]
EQUAL = torch.arange(24) // 3
UNEQUAL = torch.tensor([0] * 7 + [1] * 2 + [2] * 5 + [3] * 3 + [4] + [5] * 6)  # identity 4 has no positive


def rows(dtype: torch.dtype = torch.float64) -> Tensor:
    """24 rows in 6 columns, lengths from 0.5 to 2, of which half are close to the row before."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(24, 6, generator=generator, dtype=torch.float64)
    x[1::2] = x[::2] + 0.4 * x[1::2]
    return (x * torch.linspace(0.5, 2, 24, dtype=torch.float64)[:, None]).to(dtype)


def value_and_gradient(loss: Call, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    own = x.clone().requires_grad_()
    value = loss(own, labels)
    (gradient,) = torch.autograd.grad(value.sum(), own)
    return value.detach(), gradient


def agree(mine: Call, theirs: Call, labels: Tensor = EQUAL, x: Tensor | None = None) -> None:
    x = rows() if x is None else x
    own, expected = (value_and_gradient(loss, x, labels) for loss in (mine, theirs))
    assert expected[1].abs().sum() > 0
    torch.testing.assert_close(own[0], expected[0].to(own[0].dtype))
    torch.testing.assert_close(own[1], expected[1])


# pytorch-metric-learning


class PML:
    def __init__(self) -> None:
        package("pytorch_metric_learning")
        from pytorch_metric_learning import distances, losses, miners, reducers

        self.distances, self.losses, self.miners, self.reducers = distances, losses, miners, reducers

    def distance(self, name: str) -> Any:
        return {
            "default": lambda: None,
            "raw": lambda: self.distances.LpDistance(normalize_embeddings=False),
            "squared": lambda: self.distances.LpDistance(power=2),
            "raw squared": lambda: self.distances.LpDistance(normalize_embeddings=False, power=2),
            "cosine": lambda: self.distances.CosineSimilarity(),
            "dot": lambda: self.distances.DotProductSimilarity(normalize_embeddings=False),
        }[name]()


@pytest.fixture(scope="module")
def pml() -> PML:
    return PML()


REDUCERS = ("AvgNonZeroReducer", "MeanReducer", "SumReducer")


@pytest.mark.parametrize("labels", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("reducer", [None, *REDUCERS])
@pytest.mark.parametrize("distance", ["default", "raw", "squared", "raw squared", "cosine"])
def test_pml_batch_hard(pml: PML, distance: str, reducer: str | None, labels: Tensor) -> None:
    metric = pml.distance(distance)
    reduce = getattr(pml.reducers, reducer)() if reducer else None
    margins: list[dict[str, Any]] = [{}, {"margin": 0.3}, {"margin": 0, "smooth_loss": True}]
    for words in margins:
        theirs = pml.losses.TripletMarginLoss(distance=metric, reducer=reduce, **words)
        miner = pml.miners.BatchHardMiner(distance=metric)
        mine = pml_form.BatchHardTripletMarginLoss(distance=metric, reducer=reduce, **words)
        agree(mine, lambda x, y, loss=theirs, mine=miner: loss(x, y, mine(x, y)), labels)  # type: ignore[misc]


@pytest.mark.parametrize("labels", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("distance", ["default", "cosine", "dot"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SupConLoss", {}),
        ("SupConLoss", {"temperature": 0.5}),
        ("NTXentLoss", {}),
        ("NTXentLoss", {"temperature": 0.5}),
        ("CircleLoss", {}),
        ("CircleLoss", {"m": 0.25, "gamma": 32}),
    ],
)
def test_pml_pairs(pml: PML, name: str, words: dict[str, float], distance: str, labels: Tensor) -> None:
    if name == "CircleLoss" and distance == "dot":
        with pytest.raises(ValueError, match="pass CosineSimilarity"):
            pml_form.CircleLoss(distance=pml.distance("dot"))
        return
    for reducer in (None, *REDUCERS):
        if (name, reducer) == ("NTXentLoss", "AvgNonZeroReducer"):
            continue
        options = words | {"distance": pml.distance(distance)}
        options["reducer"] = getattr(pml.reducers, reducer)() if reducer else None
        theirs = getattr(pml.losses, name)(**options)
        agree(getattr(pml_form, name)(**options), theirs, labels)


@pytest.mark.parametrize("name", ["BatchHardTripletMarginLoss", "SupConLoss", "NTXentLoss", "CircleLoss"])
@pytest.mark.parametrize("reducer", [None, *REDUCERS])
def test_pml_of_reference_rows(pml: PML, name: str, reducer: str | None) -> None:
    """A row's own copy among them is a positive as any other; identity 4 has a positive now, 9 is new."""
    if (name, reducer) == ("NTXentLoss", "AvgNonZeroReducer"):
        return
    generator = torch.Generator().manual_seed(7)
    bank = torch.cat([rows()[:5], torch.randn(30, 6, generator=generator, dtype=torch.float64)])
    bank_labels = torch.cat([UNEQUAL[:5], torch.arange(30) % 10])
    reduce = getattr(pml.reducers, reducer)() if reducer else None
    triplet = name == "BatchHardTripletMarginLoss"
    theirs = (pml.losses.TripletMarginLoss if triplet else getattr(pml.losses, name))(reducer=reduce)
    mine, miner = getattr(pml_form, name)(reducer=reduce), pml.miners.BatchHardMiner()
    found = []
    for loss in (mine, theirs):
        x, r = rows().requires_grad_(), bank.clone().requires_grad_()
        indices = miner(x, UNEQUAL, r, bank_labels) if triplet and loss is theirs else None
        value = loss(x, UNEQUAL, indices, r, bank_labels)
        found.append((value.detach(), *torch.autograd.grad(value, (x, r))))
    assert found[1][2].any()
    torch.testing.assert_close(*found)


def test_pml_of_no_pairs(pml: PML) -> None:
    for labels in (torch.zeros(24, dtype=torch.int64), torch.arange(24)):
        for name in ("SupConLoss", "NTXentLoss", "CircleLoss"):
            mine, theirs = (getattr(module, name)() for module in (pml_form, pml.losses))
            own, expected = (value_and_gradient(loss, rows(), labels) for loss in (mine, theirs))
            assert own[0] == expected[0] == 0 and not own[1].any() and not expected[1].any()


def test_pml_defaults_are_the_librarys(pml: PML) -> None:
    counterparts = {"BatchHardTripletMarginLoss": "TripletMarginLoss"}
    for name in ("BatchHardTripletMarginLoss", "SupConLoss", "NTXentLoss", "CircleLoss"):
        theirs = inspect.signature(getattr(pml.losses, counterparts.get(name, name))).parameters
        for key, parameter in inspect.signature(getattr(pml_form, name)).parameters.items():
            if parameter.kind is not parameter.VAR_KEYWORD:
                assert theirs[key].default == parameter.default, (name, key)
        mine, library = (
            getattr(pml_form, name)(),
            getattr(pml.losses, counterparts.get(name, name))(),
        )
        assert pml_form.REDUCERS[type(library.reducer).__name__] == mine.reducer


@pytest.mark.parametrize("name", ["BatchHardTripletMarginLoss", "SupConLoss", "NTXentLoss", "CircleLoss"])
def test_pml_what_cannot_be_honoured_is_refused(name: str) -> None:
    x, triplets = rows(), (torch.tensor([0]),) * 3
    loss = getattr(pml_form, name)()
    with pytest.raises(ValueError, match=rf"indices_tuple: {name} .*; pass None and drop the miner"):
        loss(x, EQUAL, triplets)
    with pytest.raises(ValueError, match=r"labels: .*pass one integer per row"):
        loss(x, indices_tuple=triplets)
    with pytest.raises(ValueError, match="pass both, or neither"):
        loss(x, EQUAL, ref_emb=x)
    with pytest.raises(ValueError, match="ref_labels: the batch's own labels"):
        loss(x, EQUAL, ref_emb=x, ref_labels=EQUAL)
    with pytest.raises(ValueError, match=r"pass reducer=.valid_anchors."):
        getattr(pml_form, name)(backend="triton")
    with pytest.raises(ValueError, match="reducer: expected one of"):
        getattr(pml_form, name)(reducer="median")
    Odd = type("SNRDistance", (), {"p": 2, "power": 1})
    with pytest.raises(ValueError, match=r"distance: .* SNRDistance .*pass"):
        getattr(pml_form, name)(distance=Odd())


def test_pml_words_that_have_no_meaning_here() -> None:
    with pytest.raises(ValueError, match="pass margin=0"):
        pml_form.BatchHardTripletMarginLoss(smooth_loss=True)
    with pytest.raises(ValueError, match='pass "mean"'):
        pml_form.NTXentLoss(reducer="avg_non_zero")
    with pytest.raises(ValueError, match=r"distance: .*power=3"):
        pml_form.BatchHardTripletMarginLoss(distance=SimpleNamespace(p=2, power=3))


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_pml_valid_anchors_is_the_packages_mean(backend: str) -> None:
    x = rows(torch.float32)
    if backend == "triton":
        pytest.importorskip("triton")
    loss = pml_form.SupConLoss(temperature=0.3, reducer="valid_anchors", backend=backend)
    agree(loss, lambda x, y: kernels.supervised_contrastive_loss(x, y, temperature=0.3), UNEQUAL, x)


def over_ranks(rank: int, world: int) -> None:
    own = slice(12 * rank, 12 * rank + 12)
    options: pml_form.Options = {"reducer": "valid_anchors", "group": dist.group.WORLD}
    loss = pml_form.BatchHardTripletMarginLoss(0.3, **options)
    value, gradient = value_and_gradient(loss, rows()[own], EQUAL[own])
    expected = value_and_gradient(pml_form.BatchHardTripletMarginLoss(0.3, reducer="mean"), rows(), EQUAL)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient, world * expected[1][own])


def test_pml_over_ranks(tmp_path: Path) -> None:
    run_ranks(over_ranks, 2, tmp_path)


# open-metric-learning


@pytest.fixture(scope="module")
def oml() -> SimpleNamespace:
    package("oml.losses.triplet")
    from oml.losses.triplet import TripletLossWithMiner
    from oml.miners.inbatch_hard_tri import HardTripletsMiner

    return SimpleNamespace(loss=TripletLossWithMiner, miner=HardTripletsMiner)


@pytest.mark.parametrize("need_logs", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("margin", [0.3, 2.0, None])
def test_oml(oml: SimpleNamespace, margin: float | None, reduction: str, need_logs: bool) -> None:
    options: dict[str, Any] = {"reduction": reduction, "need_logs": need_logs}
    theirs = oml.loss(margin, oml.miner(), **options)
    mine = oml_form.TripletLossWithMiner(margin, oml.miner(), **options)
    agree(mine, theirs)
    agree(lambda x, y: mine(x, y.tolist()), lambda x, y: theirs(x, y.tolist()))
    agree(lambda x, y: mine(x, y[:, None]), lambda x, y: theirs(x, y[:, None]))
    assert mine.last_logs == pytest.approx(theirs.last_logs) and bool(mine.last_logs) == need_logs
    assert mine.criterion_name == theirs.criterion_name


def test_oml_another_miner_is_refused(oml: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"miner: the library's default.*pass miner='HardTripletsMiner'"):
        oml_form.TripletLossWithMiner(0.3)
    with pytest.raises(ValueError, match="miner: AllTripletsMiner is not computed here"):
        oml_form.TripletLossWithMiner(0.3, type("AllTripletsMiner", (), {})())
    with pytest.raises(ValueError, match="margin: expected a number above 0"):
        oml_form.TripletLossWithMiner(0.0, oml.miner())


def test_oml_logs_of_anchors_that_count() -> None:
    loss = oml_form.TripletLossWithMiner(0.3, oml_form.HARD, need_logs=True)
    alone = oml_form.TripletLossWithMiner(0.3, oml_form.HARD)
    agree(loss, alone, UNEQUAL)
    counted = UNEQUAL != 4
    distance = torch.cdist(rows(), rows())
    positive = (UNEQUAL[:, None] == UNEQUAL) & ~torch.eye(24, dtype=torch.bool)
    hardest = torch.stack([distance[k][positive[k]].max() for k in range(24) if counted[k]])
    nearest = torch.stack([distance[k][UNEQUAL != UNEQUAL[k]].min() for k in range(24) if counted[k]])
    active = (hardest - nearest + 0.3 > 0).double()
    expected = {"active_tri": active.mean(), "pos_dist": hardest.mean(), "neg_dist": nearest.mean()}
    assert loss.last_logs == pytest.approx({key: float(value) for key, value in expected.items()})


# sentence-transformers


@pytest.fixture(scope="module")
def st() -> ModuleType:
    package("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    module: ModuleType = losses
    return module


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "squared_euclidean"])
def test_st(st: ModuleType, metric: str) -> None:
    functions = st.BatchHardTripletLossDistanceFunction
    theirs: dict[str, Callable[[Tensor], Tensor]] = {
        "euclidean": functions.euclidean_distance,
        "cosine": functions.cosine_distance,
        "squared_euclidean": lambda x: functions.euclidean_distance(x, squared=True),
    }
    for margin in (5, 0.3):
        for metric_here in {metric, metric if metric.startswith("squared") else theirs[metric]}:
            pair = (
                st_form.BatchHardTripletLoss(Embedder(), metric_here, margin),
                st.BatchHardTripletLoss(Embedder(), theirs[metric], margin),
            )
            losses_of_sentences_agree(*pair)
    losses_of_sentences_agree(
        st_form.BatchHardSoftMarginTripletLoss(Embedder(), metric),
        st.BatchHardSoftMarginTripletLoss(Embedder(), theirs[metric]),
    )


def losses_of_sentences_agree(mine: nn.Module, theirs: nn.Module) -> None:
    for labels in (EQUAL, EQUAL[:, None]):
        own, expected = (loss([{"x": rows()}], labels) for loss in (mine, theirs))
        torch.testing.assert_close(own, expected)
        for loss in (own, expected):
            loss.backward()
        torch.testing.assert_close(gradient_of_the_model(mine), gradient_of_the_model(theirs))
    agree(
        lambda x, y: mine.compute_loss_from_embeddings([x], y),  # type: ignore[operator]
        lambda x, y: theirs.compute_loss_from_embeddings([x], y),  # type: ignore[operator]
    )


def gradient_of_the_model(loss: nn.Module) -> Tensor:
    (parameter,) = loss.parameters()
    assert parameter.grad is not None and parameter.grad.any()
    return parameter.grad


def test_st_defaults_and_model_card(st: ModuleType) -> None:
    for name in ("BatchHardTripletLoss", "BatchHardSoftMarginTripletLoss"):
        mine, theirs = (getattr(module, name)(Embedder()) for module in (st_form, st))
        losses_of_sentences_agree(mine, theirs)
        own, expected = mine.get_config_dict(), theirs.get_config_dict()
        assert st_form.DISTANCES[expected.pop("distance_metric")] == own.pop("distance_metric")
        assert own == expected
        assert [child for child, _ in mine.named_children()] == [
            child for child, _ in theirs.named_children()
        ]


def test_st_in_a_real_model(st: ModuleType) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(modules=[Embedder()], device="cpu")
    losses_of_sentences_agree(st_form.BatchHardTripletLoss(model), st.BatchHardTripletLoss(model))


def test_st_a_sentence_without_a_positive_does_not_count() -> None:
    loss = st_form.BatchHardTripletLoss(Embedder(), margin=0.3)
    found = loss([{"x": rows()}], UNEQUAL)
    assert torch.equal(found, kernels.batch_hard_loss(rows(), UNEQUAL, margin=0.3))


def test_st_an_unknown_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="distance_metric: expected one of 'euclidean'"):
        st_form.BatchHardTripletLoss(Embedder(), "manhattan")
    with pytest.raises(ValueError, match="got <lambda>"):
        st_form.BatchHardTripletLoss(Embedder(), lambda x: x)


def test_the_adapters_import_none_of_the_libraries() -> None:
    names = ("pytorch_metric_learning", "oml", "sentence_transformers")
    code = (
        "import sys, maskreid_kernels\n"
        "assert not [name for name in sys.modules if name.startswith('maskreid_kernels.adapters')]\n"
        "import maskreid_kernels.adapters.pytorch_metric_learning\n"
        "import maskreid_kernels.adapters.open_metric_learning\n"
        "import maskreid_kernels.adapters.sentence_transformers\n"
        f"print([name for name in {names} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(kernels.__file__).parent.parent)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
