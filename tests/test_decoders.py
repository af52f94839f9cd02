"""The decoders beside Pillow's: the same pixels, the same refusals; the GPU's path, run on the CPU."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.io import decode_jpeg

from market import jpeg, png
from maskreid_dist.config import DataConfig
from maskreid_dist.data import decoders
from maskreid_dist.data.batches import (
    Batch,
    evaluation_loader,
    make_plan,
    open_recipe_shards,
    training_loader,
)
from maskreid_dist.data.decoders import decode_on, decode_with_torchvision
from maskreid_dist.data.transforms import as_tensors
from maskreid_dist.errors import SampleError
from maskreid_shards import RawPair, ShardError, decode_pair, open_shards
from test_shards_reading import encoded, pair
from test_stream import AUGMENTED, WALKERS, config, same, sound

CPU = torch.device("cpu")
SAMPLES = open_shards(WALKERS).split("train").read_many(range(0, 200, 7))


def test_pixels_are_pillow_s() -> None:
    for raw in SAMPLES:
        for found, expected in zip(decode_with_torchvision(raw), as_tensors(*decode_pair(raw)), strict=True):
            assert isinstance(found, torch.Tensor) and type(found) is type(expected)
            assert found.shape == expected.shape and found.dtype == expected.dtype == torch.uint8
            assert (
                found.int() - expected.int()
            ).abs().max() <= 1  # two builds of libjpeg-turbo may round apart


@pytest.mark.parametrize(
    "kind", ["grey", "cmyk", "progressive", "png", "webp", "small mask", "see-through mask"]
)
def test_other_pictures(kind: str) -> None:
    image = Image.open(io.BytesIO(jpeg(1)))
    buffer = io.BytesIO()
    mode = {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")
    form = kind.upper() if kind in ("png", "webp") else "JPEG"
    options = {"progressive": True} if kind == "progressive" else {}
    image.convert(mode).save(buffer, form, **options)
    mask = png(1, (8, 24)) if kind == "small mask" else png(1)
    if kind == "see-through mask":
        see_through = io.BytesIO()
        Image.open(io.BytesIO(mask)).save(see_through, "PNG", transparency=255)
        mask = see_through.getvalue()
    raw = pair(buffer.getvalue(), mask)
    expected = as_tensors(*decode_pair(raw))
    for found in (decode_with_torchvision(raw), decode_on(CPU, [raw])[0]):
        for one, other in zip(as_tensors(*found), expected, strict=True):
            assert one.shape == other.shape and (one.int() - other.int()).abs().max() <= (
                8 if kind == "cmyk" else 1
            )


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (b"", png(1)),
        (jpeg(1)[:-300], png(1)),
        (jpeg(1)[:40] + b"\xff\xd9", png(1)),
        (encoded(Image.new("RGB", (5000, 5000)), "JPEG"), png(1)),
        (jpeg(1), png(1)[:60]),
        (jpeg(1), png(1)[:-30]),
        (jpeg(1), encoded(Image.new("RGB", (16, 32)), "PNG")),
        (jpeg(1), encoded(Image.new("1", (16, 32)), "PNG")),
    ],
)
def test_refusals_are_pillow_s(image: bytes, mask: bytes) -> None:
    raw = pair(image, mask)
    with pytest.raises(ShardError) as expected:
        decode_pair(raw)
    with pytest.raises(ShardError) as found:
        decode_with_torchvision(raw)
    with pytest.raises(ShardError) as together:
        decode_on(CPU, [pair(jpeg(1), png(1)), raw])
    assert str(found.value) == str(together.value) == str(expected.value)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    bomb = pair(encoded(Image.new("RGB", (5000, 5000)), "JPEG"), png(1))
    for decode in (decode_with_torchvision, lambda raw: decode_on(CPU, [raw])):
        with pytest.raises(ShardError, match="5000 x 5000 pixels"):
            decode(bomb)


def batches(**data: object) -> list[Batch]:
    recipe = config(3, **{"workers": 2, **AUGMENTED, **data})
    split = open_recipe_shards(recipe.data).split("train")
    plan = make_plan(split, recipe.batch, recipe.seed, 1)
    return sound(training_loader(split, plan, recipe, 0, 0, 1, CPU))


def test_batches_of_every_decoder() -> None:
    pillow, turbo, gpu = (batches(decoder=name) for name in ("pillow", "torchvision", "gpu"))
    assert len(turbo) == 3 and all(map(same, turbo, gpu))
    for one, other in zip(pillow, turbo, strict=True):
        assert torch.equal(one.samples_B, other.samples_B) and torch.equal(one.mask_B1HW, other.mask_B1HW)
        difference = (one.image_B3HW.int() - other.image_B3HW.int()).abs().float()
        assert difference.mean() < 0.1, "the same augmentations"


def test_the_decoder_of_the_recipe_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def counted(data: object, *arguments: object, **options: object) -> object:
        calls.append(options.get("device"))
        return decode_jpeg(data, *arguments, **options)

    monkeypatch.setattr(decoders, "decode_jpeg", counted)
    batches(decoder="pillow", workers=0)
    assert not calls
    batches(decoder="torchvision", workers=0)
    assert len(calls) == 3 * 80 and set(calls) == {None}
    calls.clear()
    batches(decoder="gpu", workers=0)
    assert calls == [CPU] * 3
    recipe = config(1, decoder="gpu")
    split = open_recipe_shards(recipe.data).split("query")
    next(iter(evaluation_loader(split, recipe, np.arange(4))))
    assert len(calls) == 3, "evaluation is Pillow's"


def test_a_bad_sample_on_the_gpu_s_path_is_a_sample_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        decoders, "image_size", lambda raw: decode_pair(RawPair(raw.key, 1, 1, b"", b"", raw.shard))
    )
    with pytest.raises(SampleError, match=r"train/.*: image: not a readable"):
        batches(decoder="gpu", workers=0)


def test_a_gpu_cannot_replace_bad_samples() -> None:
    with pytest.raises(ValidationError, match="cannot replace bad samples"):
        DataConfig(shards="x", decoder="gpu", bad_samples=1)
