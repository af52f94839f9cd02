"""Recipes: what is accepted, and the one line that a bad one gets."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from maskreid_dist.config import DEFAULT_MARGINS, LossConfig
from maskreid_dist.errors import RecipeError
from maskreid_dist.model import Output
from maskreid_dist.model.build import check_backbone
from maskreid_dist.recipe import load_recipe
from maskreid_dist.training.objective import objective
from maskreid_kernels import (
    LOSSES,
    RankingStatistics,
    all_pairs_loss,
    batch_hard_loss,
    circle_loss,
    constants,
    n_pair_loss,
    ranking_loss,
    supervised_contrastive_loss,
)
from maskreid_kernels.backends import interpreted
from maskreid_kernels.precision import PRECISIONS

ROOT = Path(__file__).parent.parent
MINIMAL = 'name = "t"\n[data]\nshards = "shards/walkers"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "path", sorted((ROOT / "launch" / "recipes").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_recipe_of_the_repository_is_valid(path: Path) -> None:
    config = load_recipe(path)
    assert config.data.shards
    if config.model.backbone != "inception":
        pytest.importorskip("timm")
        check_backbone(config)


def test_recipes_are_read_without_torch() -> None:
    code = "import sys, maskreid_dist.recipe; sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    config = load_recipe(write(tmp_path, MINIMAL))
    assert (config.loss.name, config.loss.margin, config.loss.pull, config.loss.negatives) == (
        "ranking",
        0.15,
        2.0,
        "all",
    )
    assert (config.data.height, config.data.width, config.model.embedding_dim) == (144, 56, 256)
    assert config.model.streams == ("raw", "masked")


@pytest.mark.parametrize(
    ("extra", "overrides", "words"),
    [
        ("", ["optimizer.learning_rate=0.1"], ["optimizer.learning_rate", "optimizer.lr"]),
        ("", ["engine.precision=bfloat16"], ["engine.precision is called engine.autocast now"]),
        ("", ["optimiser.lr=0.1"], ["unknown key optimiser", "did you mean optimizer"]),
        ("[batch]\nidentites = 4\n", [], ["batch.identites", "batch.identities"]),
        ("[batch]\nidentities = 2.5\n", [], ["batch.identities", "integer", "2.5"]),
        ("[batch]\nidentities = 0\n", [], ["batch.identities", "greater than 0"]),
        ("[loss]\nmargin = 'soft'\n", [], ["loss", "batch_hard"]),
        ("[loss]\nname = 'triplet'\n", [], ["loss.name", '"triplet" is now called "batch_hard"']),
        ("[loss]\nname = 'supcon'\n", [], ["loss.name", 'is now called "supervised_contrastive"']),
        ("[loss]\nname = 'contrastive'\n", [], ["loss.name", "ranking", "contrastive"]),
        ("[loss]\nname = 'circle'\ngamma = 0.0\n", [], ["loss.gamma", "greater than 0"]),
        (
            "[loss]\nname = 'supervised_contrastive'\ntemperature = -0.1\n",
            [],
            ["loss.temperature", "greater than 0"],
        ),
        ("[loss]\nname = 'circle'\nmargin = 'soft'\n", [], ["loss", "batch_hard"]),
        ("[loss]\nprecision = 'fp8'\n", [], ["loss.precision", "bf16x3", "fp8"]),
        ("[loss]\nprecision = 'tf32'\nbackend = 'dense'\n", [], ["loss", 'triton backend, not of "dense"']),
        (
            "[loss]\nprecision = 'tf32'\nname = 'softmax'\n",
            [],
            ["loss", "softmax loss has no triton backend"],
        ),
        ("[loss]\nname = 'n_pair'\n", ["batch.images=1"], ["n_pair loss", "batch.images must be at least 2"]),
        ("[model]\nstreams = ['raw', 'raw']\n", [], ["model", "each once"]),
        ("", ["optimizer.lr=inf"], ["optimizer.lr", "finite"]),
        ("", ["batch.images=1"], ["ranking loss", "batch.images must be at least 2"]),
        ("", ["data.height=200"], ["data", "200x56", "160x64"]),
        ("", ["data.shards.x=1"], ["data.shards.x=1", "shards is a value"]),
        ("", ["lr"], ["--set lr", "key=value"]),
        ("[data\n", [], ["not valid TOML"]),
    ],
)
def test_bad_recipe_gets_one_line_that_names_file_or_key(
    tmp_path: Path, extra: str, overrides: list[str], words: list[str]
) -> None:
    path = write(tmp_path, MINIMAL + extra)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_missing_key_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.toml: key data is missing"):
        load_recipe(write(tmp_path, 'name = "t"\n'))
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "other.toml")


def test_overrides_take_toml_values_and_bare_words(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    config = load_recipe(
        path, ["model.streams=['raw']", "loss.name=batch_hard", "loss.margin=soft", "optimizer.lr=3e-4"]
    )
    assert config.model.streams == ("raw",)
    assert (config.loss.name, config.loss.margin, config.optimizer.lr) == ("batch_hard", "soft", 3e-4)


def test_configuration_is_frozen(tmp_path: Path) -> None:
    config = load_recipe(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        config.optimizer.lr = 1.0


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("name = 'n_pair'\nscale = 16.0", lambda x, y: n_pair_loss(x, y, scale=16.0)),
        ("name = 'all_pairs'", lambda x, y: all_pairs_loss(x, y)),
        (
            "name = 'all_pairs'\nmargin = 0.2\nscale = 4.0",
            lambda x, y: all_pairs_loss(x, y, scale=4.0, margin=0.2),
        ),
        ("name = 'circle'", lambda x, y: circle_loss(x, y)),
        (
            "name = 'circle'\nmargin = 0.4\ngamma = 80.0",
            lambda x, y: circle_loss(x, y, margin=0.4, gamma=80.0),
        ),
        ("name = 'supervised_contrastive'", lambda x, y: supervised_contrastive_loss(x, y)),
        (
            "name = 'supervised_contrastive'\ntemperature = 0.5",
            lambda x, y: supervised_contrastive_loss(x, y, temperature=0.5),
        ),
        ("name = 'batch_hard'\nmargin = 'soft'", lambda x, y: batch_hard_loss(x, y, margin="soft")),
        ("name = 'ranking'\nmargin = 0.3", lambda x, y: ranking_loss(x, y, margin=0.3)),
    ],
)
def test_a_recipe_names_its_loss_and_constants(
    tmp_path: Path, extra: str, expected: Callable[[Tensor, Tensor], Tensor]
) -> None:
    config = load_recipe(write(tmp_path, f"{MINIMAL}[loss]\n{extra}\n")).loss
    x, labels = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) // 3
    loss, scalars = objective(Output(x, None), labels, config, None)
    assert torch.equal(loss, expected(x, labels))
    assert ("loss_above_floor" in scalars) == (config.name == "ranking")


@pytest.mark.parametrize(("name", "weight"), [("softmax", 0.0), ("ranking", 0.5)])
def test_label_smoothing_is_of_the_softmax_by_itself_or_added(name: str, weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, logits = torch.randn(12, 6, generator=generator), torch.randn(12, 4, generator=generator)
    labels = torch.arange(12) // 3
    config = LossConfig.model_validate({"name": name, "identity_weight": weight, "label_smoothing": 0.2})
    loss, _ = objective(Output(x, logits), labels, config, None)
    smooth = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    pairs = ranking_loss(x, labels, margin=0.15, pull=2.0)
    assert torch.allclose(loss, smooth if name == "softmax" else pairs + weight * smooth)


def test_recipes_know_every_loss_of_the_table() -> None:
    assert set(get_args(LossConfig.model_fields["name"].annotation)) == set(LOSSES)
    assert {name: constants(name)["margin"] for name in DEFAULT_MARGINS} == DEFAULT_MARGINS
    for name in set(LOSSES) - {"softmax"}:
        assert set(constants(name)) - {"normalize"} <= set(LossConfig.model_fields)


def test_recipes_know_every_precision_preset() -> None:
    assert set(get_args(LossConfig.model_fields["precision"].annotation)) == {"auto", *PRECISIONS}


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"softmax"}))
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_the_precision_of_a_recipe_reaches_its_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, backend: str
) -> None:
    calls = []

    def record(*, embeddings: Tensor, precision: str, **others: object) -> object:
        calls.append(precision)
        loss = embeddings.sum()
        return (loss, RankingStatistics(loss, loss, loss)) if name == "ranking" else loss

    monkeypatch.setitem(LOSSES, name, record)
    monkeypatch.setattr("maskreid_dist.training.objective.ranking_loss_with_statistics", record)
    text = f"{MINIMAL}[loss]\nname = '{name}'\nbackend = '{backend}'\n"
    x, labels = torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
    for extra in ("", "precision = 'bf16x3'\n"):
        objective(Output(x, None), labels, load_recipe(write(tmp_path, text + extra)).loss, None)
    assert calls == ["auto", "bf16x3"]


@pytest.mark.skipif(not interpreted(), reason="Triton's interpreter alone refuses bfloat16")
def test_the_precision_of_a_recipe_reaches_the_triton_programs(tmp_path: Path) -> None:
    config = load_recipe(write(tmp_path, f"{MINIMAL}[loss]\nbackend = 'triton'\nprecision = 'bf16'\n")).loss
    with pytest.raises(ValueError, match='precision "bf16"'):
        objective(Output(torch.zeros(4, 2), None), torch.tensor([0, 0, 1, 1]), config, None)
