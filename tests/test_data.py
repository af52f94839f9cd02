"""Paired transforms and batches: image and mask move alike, and a sample's augmentation depends on its seed
alone."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskreid_dist.config import BatchConfig, Config, DataConfig, ModelConfig
from maskreid_dist.data.batches import (
    Batch,
    PairDataset,
    PlannedSteps,
    evaluation_loader,
    make_plan,
    training_loader,
)
from maskreid_dist.data.transforms import EvaluationTransform, TrainTransform, cut_out
from maskreid_dist.errors import SampleError
from maskreid_dist.evaluation.embed import embed_split
from maskreid_dist.model import MaskReID
from maskreid_shards import Plan, ShardError, decode_pair, open_shards
from test_stream import sound

WALKERS = Path(__file__).parent.parent / "shards" / "walkers"


def config(**data: Any) -> Config:
    return Config(name="t", data=DataConfig(**{"shards": str(WALKERS), "workers": 0, **data}))


def coordinates(height: int, width: int) -> tuple[Image.Image, Image.Image]:
    """A picture whose green channel is its own mask, so that moving one without the other shows."""
    y, x = np.mgrid[:height, :width]
    person = ((y // 8 + x // 8) % 2 * 255).astype(np.uint8)
    colour = np.stack([y * 255 // height, person, x * 255 // width], axis=2).astype(np.uint8)
    return Image.fromarray(colour), Image.fromarray(person)


def test_image_and_mask_move_alike() -> None:
    transform = TrainTransform(DataConfig(shards="", resize_height=160, resize_width=64))
    for seed in range(30):
        image, mask = transform(*coordinates(160, 64), seed)
        assert image.shape == (3, 144, 56)
        assert mask.shape == (1, 144, 56)
        assert torch.equal(image[1], mask[0])


def test_resizing_keeps_the_mask_binary_and_aligned() -> None:
    transform = EvaluationTransform(
        DataConfig(shards="", resize_height=72, resize_width=32, height=72, width=28)
    )
    image, mask = transform(*coordinates(144, 64))
    assert set(mask.unique().tolist()) <= {0, 255}
    assert ((image[1] > 127) == (mask[0] > 127)).float().mean() > 0.9


def test_crops_and_mirrors_vary_with_the_seed_and_repeat_with_it() -> None:
    transform = TrainTransform(
        DataConfig(shards="", brightness=0.3, contrast=0.2, saturation=0.2, hue=0.1, erasing=0.5)
    )
    pair = coordinates(128, 64)
    torch.manual_seed(5)
    first = [transform(*pair, seed) for seed in range(8)]
    drawn = torch.rand(1)
    torch.manual_seed(99)
    again = [transform(*pair, seed) for seed in range(8)]
    assert all(
        torch.equal(a, b)
        for one, two in zip(first, again, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    assert len({image.numpy().tobytes() for image, _ in first}) == 8
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn), "the transform must leave the global generator alone"


def test_mirror_happens_half_of_the_time() -> None:
    transform = TrainTransform(DataConfig(shards="", height=160, width=64))
    image, mask = coordinates(160, 64)
    straight = torch.from_numpy(np.array(mask))
    mirrored = sum(not torch.equal(transform(image, mask, seed)[1][0], straight) for seed in range(200))
    assert 70 < mirrored < 130


def test_erasing_covers_the_image_and_not_the_mask() -> None:
    transform = TrainTransform(DataConfig(shards="", height=160, width=64, mirror=0.0, erasing=1.0))
    image, mask = coordinates(160, 64)
    erased, kept = transform(image, mask, 3)
    changed = (erased != torch.from_numpy(np.array(image)).permute(2, 0, 1)).any(dim=0)
    assert changed.any()
    assert torch.equal(
        erased[:, changed].unique(dim=1), torch.tensor([[102], [102], [101]], dtype=torch.uint8)
    )
    assert torch.equal(kept[0], torch.from_numpy(np.array(mask)))


def test_erasing_takes_the_person_out_of_the_mask_where_the_recipe_says_so() -> None:
    image, mask = coordinates(160, 64)
    size = {"height": 160, "width": 64, "mirror": 0.0, "erasing": 1.0}
    plain = TrainTransform(DataConfig.model_validate({"shards": "", **size}))
    alike = TrainTransform(DataConfig.model_validate({"shards": "", **size, "erase_mask": True}))
    (expected, kept), (erased, cut) = plain(image, mask, 3), alike(image, mask, 3)
    assert torch.equal(erased, expected)
    gone = (expected != torch.from_numpy(np.array(image)).permute(2, 0, 1)).any(dim=0)
    assert torch.equal(cut[0], torch.where(gone, 0, kept[0])) and not torch.equal(cut, kept)


def test_cut_out_keeps_the_person() -> None:
    image, mask = coordinates(32, 16)
    cut, person = np.array(cut_out(image, mask)), np.array(mask) == 255
    assert np.array_equal(cut[person], np.array(image)[person])
    assert np.array_equal(np.unique(cut[~person], axis=0), [[102, 102, 101]])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_plans_whatever_the_workers(workers: int) -> None:
    split = open_shards(WALKERS).split("train")
    recipe = config(workers=workers, height=36, width=14, resize_height=40, resize_width=16)
    plan = make_plan(split, BatchConfig(identities=8, images=2), 3, 2)
    recipe = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"steps": 28})})
    start = 23  # 25 steps an epoch: passes from epoch 0 to epoch 1
    batches = sound(training_loader(split, plan, recipe, start, 1, 2, torch.device("cpu")))
    assert len(batches) == 5
    plain = PairDataset(split, TrainTransform(recipe.data))
    for step, batch in enumerate(batches, start):
        epoch, step_in_epoch = divmod(step, plan.steps_per_epoch)
        draws = plan.rank_draws(epoch, step_in_epoch, 1, 2)
        assert batch.samples_B.tolist() == draws.samples.tolist()
        assert batch.pids_B.tolist() == split.pids[draws.samples].tolist()
        transform = TrainTransform(recipe.data)
        from maskreid_shards import decode_pair

        image, mask = transform(*decode_pair(split.read(int(draws.samples[3]))), int(draws.seeds[3]))
        assert torch.equal(batch.image_B3HW[3], image)
        assert torch.equal(batch.mask_B1HW[3], mask)
    assert plain.split is split


def test_ranks_share_one_global_batch_without_repeating_an_identity() -> None:
    split = open_shards(WALKERS).split("train")
    plan = make_plan(split, BatchConfig(identities=12, images=4), 0, 1)
    alone = list(PlannedSteps(plan, 0, 20, 0, 1))
    for world_size in (2, 3, 4):
        ranks = [list(PlannedSteps(plan, 0, 20, rank, world_size)) for rank in range(world_size)]
        for whole, parts in zip(alone, zip(*ranks, strict=True), strict=True):
            assert np.array_equal(np.concatenate([part.samples for part in parts]), whole.samples)
            assert np.array_equal(np.concatenate([part.seeds for part in parts]), whole.seeds)
    for samples in (draws.samples.tolist() for draws in alone):
        assert len(np.unique(split.pids[samples])) == 12


def test_the_papers_batch() -> None:
    split = open_shards(WALKERS).split("train")
    plan = make_plan(split, BatchConfig(sampling="paper"), 0, 2)
    for draws in PlannedSteps(plan, 0, plan.steps_per_epoch, 1, 2):
        _, counts = np.unique(split.pids[draws.samples], return_counts=True)
        assert len(counts) == 55
        assert sorted(counts)[:-1] == [1] * 54
        assert max(counts) <= 10


def test_identities_not_divisible_by_the_world_size() -> None:
    split = open_shards(WALKERS).split("train")
    with pytest.raises(ShardError, match=r"16 identities \(P\).*3 ranks.*15 or 18"):
        make_plan(split, BatchConfig(identities=16, images=4), 0, 3)
    assert isinstance(make_plan(split, BatchConfig(identities=15, images=4), 0, 3), Plan)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_bit_names_shard_key_and_offset(tmp_path: Path, workers: int) -> None:
    shards = shutil.copytree(WALKERS, tmp_path / "walkers")
    split = open_shards(shards).split("query")
    row = split.index[9]
    shard = Path(split.urls()[int(row["shard"])])
    data = bytearray(shard.read_bytes())
    data[int(row["image_offset"]) + 50] ^= 4
    shard.write_bytes(data)
    loader = evaluation_loader(split, config(workers=workers), np.arange(20), rows=5)
    kinds = [type(item) for item in loader]
    assert kinds == [Batch, SampleError, Batch, Batch], "a bad sample is a value in its batch's place"
    with pytest.raises(SampleError) as caught:
        embed_split(MaskReID(ModelConfig(width=0.125)), split, config(workers=workers), torch.device("cpu"))
    message = str(caught.value)
    assert "\n" not in message
    assert str(shard) in message
    assert row["key"].decode() in message
    assert f"offset {row['image_offset']}" in message


def test_evaluation_keeps_the_order() -> None:
    split = open_shards(WALKERS).split("query")
    numbers = np.array([5, 4, 3, 100, 7])
    batches = sound(
        evaluation_loader(
            split, config(height=36, width=14, resize_height=40, resize_width=16), numbers, rows=2
        )
    )
    assert [len(batch.pids_B) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.samples_B for batch in batches]).tolist() == numbers.tolist()


def test_damaged_masks_by_hand() -> None:
    """Pixels of a 3 x 3 person in a 9 x 7 frame, and what erosion, dilation and a shift leave of it."""
    from maskreid_dist.data.mask_damage import _shifted, _widened

    mask = torch.zeros(1, 9, 7, dtype=torch.uint8)
    mask[:, 3:6, 2:5] = 255
    wide = _widened(mask, 1)
    assert (wide[:, 2:7, 1:6] == 255).all() and int((wide > 0).sum()) == 25
    assert torch.equal(255 - _widened(255 - wide, 1), mask)
    moved = _shifted(mask, -4, 3)
    assert moved[0].nonzero().tolist() == [[y, x] for y in (0, 1) for x in (5, 6)]
    assert not _shifted(mask, 9, 0).any()


def test_the_iou_of_damaged_masks(converted: Path) -> None:
    """Full masks in the place of all: a mask's IoU is the share of its frame that it covers."""
    from maskreid_dist.data.mask_damage import mean_iou

    split = open_shards(converted).split("query")
    covers = [np.mean(np.asarray(decode_pair(split.read(n))[1]) >= 128) for n in range(len(split))]
    assert mean_iou("drop=1", [split]) == pytest.approx(np.mean(covers))
    assert mean_iou("drop=0.0", [split, split]) == 1
    assert 0 < mean_iou("erode=2", [split]) < mean_iou("erode=1", [split]) < 1


@pytest.mark.parametrize("damage", ["erode=1", "dilate=2", "shift=3", "drop=0.5", "swap=0.5"])
def test_a_samples_mask_is_damaged_alike_everywhere(converted: Path, damage: str) -> None:
    """The image stays; the mask is the same in every batch, decoder and epoch."""
    split = open_shards(converted).split("train")
    sizes = {"height": 36, "width": 14, "resize_height": 36, "resize_width": 14, "mirror": 0.0}
    sound_, worse = (
        next(iter(evaluation_loader(split, config(**sizes, mask_damage=d), np.arange(len(split)), 1000)))
        for d in (None, damage)
    )
    assert isinstance(sound_, Batch) and isinstance(worse, Batch)
    assert torch.equal(sound_.image_B3HW, worse.image_B3HW)
    changed = (sound_.mask_B1HW != worse.mask_B1HW).flatten(1).any(1)
    assert changed.any() and bool(changed.all()) == (damage[:4] not in ("drop", "swap"))
    plan = make_plan(split, BatchConfig(identities=3, images=2), 0, 1)
    for decoder in ("pillow", "torchvision"):
        own = config(**sizes, mask_damage=damage, decoder=decoder)
        drawn = next(iter(training_loader(split, plan, own, 0, 0, 1, torch.device("cpu"))))
        assert isinstance(drawn, Batch)
        assert torch.equal(drawn.mask_B1HW, worse.mask_B1HW[drawn.samples_B])


@pytest.mark.parametrize(
    "damage", ["erode", "erode=0", "erode=1.5", "melt=3", "drop=1.5", "swap=-1", "drop=50%"]
)
def test_a_damage_that_is_none_is_refused(damage: str) -> None:
    with pytest.raises(ValueError, match="use erode=N"):
        DataConfig(shards="", mask_damage=damage)
