"""Pictures to embeddings, a split into a gallery, search and its page; the commands."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import maskreid_dist.cli.gallery as commands
from maskreid_dist.cli.app import app
from maskreid_dist.config import Config
from maskreid_dist.errors import SampleError, UserError
from maskreid_dist.evaluation.embed import embed_split
from maskreid_dist.evaluation.evaluate import percentages, rank_gallery
from maskreid_dist.evaluation.ranks import Ranks
from maskreid_dist.gallery import Extractor, Gallery
from maskreid_dist.gallery.enrol import embed_split_into
from maskreid_dist.gallery.journal import GalleryError
from maskreid_dist.gallery.store import Model
from maskreid_dist.model import build_network
from maskreid_dist.recipe import load_recipe
from maskreid_dist.segmentation import networks
from maskreid_dist.segmentation.networks import Segmenter
from maskreid_shards import decode_pair, open_shards

ROOT = Path(__file__).parent.parent
SMALL = [
    "data.height=36",
    "data.width=14",
    "data.resize_height=40",
    "data.resize_width=16",
    "model.width=0.125",
]


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return an_extractor(0)


def an_extractor(seed: int) -> Extractor:
    config: Config = load_recipe(ROOT / "launch" / "recipes" / "walkers_demo.toml", SMALL)
    torch.manual_seed(seed)
    return Extractor(build_network(config, 0), config, Model("small", 0, f"{seed:064x}"))


@pytest.fixture(scope="module")
def pairs(converted: Path) -> list[tuple[Image.Image, Image.Image]]:
    split = open_shards(converted).split("gallery")
    return [decode_pair(raw) for raw in split.read_many(np.arange(5))]


def test_every_kind_of_picture_is_the_same_embedding(
    extractor: Extractor, pairs: list[tuple[Image.Image, Image.Image]], tmp_path: Path, converted: Path
) -> None:
    images, masks = [image for image, _ in pairs], [mask for _, mask in pairs]
    expected = extractor(images, masks)
    whole = embed_split(
        extractor.network, open_shards(converted).split("gallery"), extractor.config, extractor.device
    )
    assert np.allclose(expected, whole[:5], atol=1e-6)
    assert np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    paths: list[tuple[Path, Path]] = []
    for number, (image, mask) in enumerate(pairs):
        paths.append((tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png"))
        image.save(paths[-1][0])
        mask.save(paths[-1][1])
    arrays = [np.array(image) for image in images]
    forms: list[tuple[list[Any], list[Any]]] = [
        ([a for a, _ in paths], [b for _, b in paths]),
        ([str(a) for a, _ in paths], [np.array(mask) for mask in masks]),
        (arrays, [torch.from_numpy(np.array(mask))[None] for mask in masks]),
        ([torch.from_numpy(a).permute(2, 0, 1) for a in arrays], [mask.convert("L") for mask in masks]),
    ]
    for given, given_masks in forms:
        for batch in (2, 64):
            assert np.allclose(extractor(given, given_masks, batch=batch), expected, atol=1e-6)
    half = [np.array(mask) > 127 for mask in masks]
    assert np.allclose(extractor(arrays, half), extractor(arrays, [h.astype(np.uint8) * 255 for h in half]))


def test_masks_that_are_not_given(extractor: Extractor, pairs: list[tuple[Image.Image, Image.Image]]) -> None:
    images = [image for image, _ in pairs]
    everything = [Image.new("L", image.size, 255) for image in images]
    assert np.array_equal(extractor(images), extractor(images, everything))
    extractor = an_extractor(0)
    extractor.segment = lambda batch: [torch.zeros(image.shape[-2:]) for image in batch]
    nothing = [Image.new("L", image.size, 0) for image in images]
    assert np.array_equal(extractor(images), extractor(images, nothing))
    assert extractor([]).shape == (0, extractor.dimensions)


def test_pictures_that_are_refused(extractor: Extractor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    good = np.zeros((8, 4, 3), np.uint8)
    for picture, word in (
        (tmp_path / "none.png", "none.png"),
        (tmp_path / "text.png", "text.png"),
        (good.astype(np.float64), "float64"),
        (np.zeros((8, 4), np.uint8), "image 1"),
    ):
        with pytest.raises(SampleError, match=word):
            extractor([good, picture])
    with pytest.raises(SampleError, match="mask 0"):
        extractor([good], [np.zeros((4, 8), np.uint8)])
    with pytest.raises(UserError, match="2 masks for 1"):
        extractor([good], [good, good])


def test_a_split_is_embedded_in_order_and_goes_on_after_a_kill(
    extractor: Extractor, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shards(converted)
    split = shards.split("gallery")
    expected = embed_split(extractor.network, split, extractor.config, extractor.device)
    embed_split_into(tmp_path / "whole", extractor, shards, "gallery")
    gallery = Gallery.open(tmp_path / "whole")
    assert np.array_equal(gallery.features, expected)
    assert gallery.pids.tolist() == split.pids.tolist()
    assert [key.encode() for key in gallery.keys] == split.keys.tolist()

    append = Gallery.append

    def killed_at_the_second(self: Gallery, *values: Any) -> None:
        if len(self):
            raise KeyboardInterrupt
        append(self, *values)

    monkeypatch.setattr(Gallery, "append", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        embed_split_into(tmp_path / "killed", extractor, shards, "gallery", ranks=Ranks(batch_rows=4))
    monkeypatch.undo()
    assert embed_split_into(tmp_path / "killed", extractor, shards, "gallery", ranks=Ranks(batch_rows=4)) > 0
    again = Gallery.open(tmp_path / "killed")
    assert list(again.keys) == list(gallery.keys)
    assert np.allclose(again.features, expected, atol=1e-6)
    with pytest.raises(GalleryError, match="another network"):
        embed_split_into(tmp_path / "whole", an_extractor(1), shards, "gallery")
    with pytest.raises(GalleryError, match="something else"):
        embed_split_into(tmp_path / "whole", extractor, shards, "query")


@pytest.fixture
def run(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run directory that holds the extractor's network."""
    monkeypatch.setattr(commands, "_extractor", lambda path, device=None: extractor)
    return "run"


def maskreid(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, result.output
    return result.output


def crop(folder: Path, name: str, seed: int) -> Path:
    path = folder / name
    values: NDArray[np.uint8] = np.random.default_rng(seed).integers(0, 255, (64, 32, 3), np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_the_commands(
    run: str, extractor: Extractor, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery, queries = tmp_path / "gallery", tmp_path / "queries"
    assert "embeddings: " in maskreid("embed", run, converted, gallery)
    assert "from before" in maskreid("embed", run, converted, gallery)
    maskreid("embed", run, converted, queries, "--split", "query")
    figures = json.loads(maskreid("score", queries, gallery, "--json"))
    shards = open_shards(converted)
    features = [
        embed_split(extractor.network, shards.split(name), extractor.config, extractor.device)
        for name in ("query", "gallery")
    ]
    expected = percentages(rank_gallery("x", features[0], features[1], shards).result)
    assert {key: figures[key] for key in expected} == expected and figures["valid_queries"] == 2
    assert f"{expected['mAP_hits']:.2f}" in maskreid("score", queries, gallery)

    first, second = crop(tmp_path, "first.png", 1), crop(tmp_path, "second.png", 2)
    mine = tmp_path / "mine"
    assert maskreid("enrol", run, mine, first, "--pid", 7).startswith("1 images")
    assert maskreid("enrol", run, mine, second, "--pid", 8, "--camera", 2).startswith("2 images")
    assert "7/first is there already" in maskreid("enrol", run, mine, first, "--pid", 7, status=2)
    page = tmp_path / "page.html"
    said = maskreid("search", run, mine, second, "--html", page)
    assert said.index("8/second") < said.index("7/first") and "1.0000" in said
    assert page.read_text().count("<figure") == 4 and "no picture" not in page.read_text()
    found = json.loads(maskreid("search", run, gallery, first, second, "--top", 3, "--json"))
    assert [len(one["matches"]) for one in found] == [3, 3]
    maskreid("search", run, gallery, first, "--html", page)
    assert "no picture" not in page.read_text()  # from the shards
    first.unlink()
    assert "1 images taken out, 1 deleted, 1 left" in maskreid("forget", mine, "--pid", 7, "--compact")
    assert "none of these" in maskreid("forget", mine, "--pid", 7, status=2)
    assert "--pid or --key" in maskreid("forget", mine, status=2)
    maskreid("forget", mine, "--key", "8/second")
    assert "nobody is in it" in maskreid("search", run, mine, second, status=2)
    monkeypatch.setattr(commands, "_extractor", lambda path, device=None: an_extractor(1))
    assert "another network" in maskreid("search", run, gallery, second, status=2)


def test_masks_made_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--segment` of enrol and search: the masks are those of the network, asked for by its name."""
    asked: list[object] = []

    def dark(images: Sequence[Tensor]) -> list[Tensor]:
        return [(image.sum(dim=0) < 300).float() for image in images]

    def load(*arguments: object) -> Segmenter:
        asked.append(arguments)
        return dark

    monkeypatch.setattr(networks, "find_weights", lambda model, file: file or Path("published"))
    monkeypatch.setattr(networks, "load_segmenter", load)
    monkeypatch.setattr(commands, "_extractor", lambda path, device=None: an_extractor(0))
    picture, mine, page = crop(tmp_path, "a.png", 1), tmp_path / "mine", tmp_path / "page.html"
    maskreid("enrol", "run", mine, picture, "--pid", 7, "--segment", "pose")
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    expected = an_extractor(0)([pixels], [pixels.astype(int).sum(axis=2) < 300])
    assert np.array_equal(Gallery.open(mine).features, expected)
    assert not np.array_equal(an_extractor(0)([pixels]), expected)
    words = ("search", "run", mine, picture, "--segment", "fcn_resnet50", "--segment-weights", "mine.pt")
    assert "1.0000" in maskreid(*words, "--html", page) and "7/a" in page.read_text()
    cpu = torch.device("cpu")
    assert asked == [("pose", Path("published"), cpu), ("fcn_resnet50", Path("mine.pt"), cpu)]
    for more, line in (
        (("--segment-weights", "mine.pt"), "--segment-weights without --segment"),
        (("--segment", "pose", "--mask", picture), "leave out --mask"),
    ):
        for command in (("search", "run", mine, picture), ("enrol", "run", mine, picture, "--pid", 8)):
            assert line in maskreid(*command, *more, status=2)


def test_an_extractor_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable checkpoint"):
        Extractor.of(tmp_path)
    assert "no gallery" in maskreid("search", tmp_path, tmp_path, tmp_path / "x.png", status=2)
