"""Recipes: what is accepted, and the one line that a bad one gets."""

from pathlib import Path

import pytest

from maskreid_dist.errors import RecipeError
from maskreid_dist.recipe import load_recipe

ROOT = Path(__file__).parent.parent
MINIMAL = 'name = "t"\n[data]\nshards = "shards/walkers"\n'


def write(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "path", sorted((ROOT / "launch" / "recipes").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_recipe_of_the_repository_is_valid(path):
    assert load_recipe(path).data.shards


def test_defaults_are_the_papers(tmp_path):
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
        ("", ["optimiser.lr=0.1"], ["unknown key optimiser", "did you mean optimizer"]),
        ("[batch]\nidentites = 4\n", [], ["batch.identites", "batch.identities"]),
        ("[batch]\nidentities = 2.5\n", [], ["batch.identities", "integer", "2.5"]),
        ("[batch]\nidentities = 0\n", [], ["batch.identities", "greater than 0"]),
        ("[loss]\nmargin = 'soft'\n", [], ["loss", "triplet"]),
        ("[loss]\nname = 'contrastive'\n", [], ["loss.name", "ranking", "contrastive"]),
        ("[model]\nstreams = ['raw', 'raw']\n", [], ["model", "each once"]),
        ("", ["optimizer.lr=inf"], ["optimizer.lr", "finite"]),
        ("", ["batch.images=1"], ["ranking loss", "batch.images must be at least 2"]),
        ("", ["data.height=200"], ["data", "200x56", "160x64"]),
        ("", ["data.shards.x=1"], ["data.shards.x=1", "shards is a value"]),
        ("", ["lr"], ["--set lr", "key=value"]),
        ("[data\n", [], ["not valid TOML"]),
    ],
)
def test_bad_recipe_gets_one_line_that_names_file_or_key(tmp_path, extra, overrides, words):
    path = write(tmp_path, MINIMAL + extra)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_missing_key_and_missing_file(tmp_path):
    with pytest.raises(RecipeError, match=r"recipe\.toml: key data is missing"):
        load_recipe(write(tmp_path, 'name = "t"\n'))
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "other.toml")


def test_overrides_take_toml_values_and_bare_words(tmp_path):
    path = write(tmp_path, MINIMAL)
    config = load_recipe(
        path, ["model.streams=['raw']", "loss.name=triplet", "loss.margin=soft", "optimizer.lr=3e-4"]
    )
    assert config.model.streams == ("raw",)
    assert (config.loss.name, config.loss.margin, config.optimizer.lr) == ("triplet", "soft", 3e-4)


def test_configuration_is_frozen(tmp_path):
    config = load_recipe(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        config.optimizer.lr = 1.0
