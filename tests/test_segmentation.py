"""Masks by torchvision's networks, through the real loading: state dicts of randomly initialised models on
disk.

The heads' biases are set so that person wins somewhere; the reference calls the same weights one image at a
time.
"""

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.segmentation import deeplabv3_resnet50, fcn_resnet50

from market import write_market
from maskreid_dist.errors import UserError
from maskreid_dist.segmentation.masks import (
    SegmentationSettings,
    is_new_folder,
    mask_files,
    segment,
    write_masks,
)
from maskreid_dist.segmentation.networks import (
    InstanceSegmenter,
    SegmentationModel,
    _central_person,
    find_weights,
    load_segmenter,
)
from maskreid_shards import (
    Layout,
    MaskOptions,
    ShardError,
    Source,
    convert,
    convert_market1501,
    decode_pair,
    open_shards,
    place_masks,
    scan_folder,
    scan_market1501,
)
from program import run

HEIGHT = 64
CPU = torch.device("cpu")
SIZES = [(16, 32), (20, 31)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One state dict a model; DeepLab's holds an auxiliary head, as the published one does."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    models = {
        "deeplabv3_resnet50": deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True),
        "fcn_resnet50": fcn_resnet50(weights=None, weights_backbone=None, num_classes=2),
        "maskrcnn_resnet50": maskrcnn_resnet50_fpn(weights=None, weights_backbone=None),
    }
    with torch.no_grad():
        models["deeplabv3_resnet50"].classifier[4].bias[15] = 3
        models["fcn_resnet50"].classifier[4].bias[1] = 0.3
        models["maskrcnn_resnet50"].roi_heads.box_predictor.cls_score.bias[1] = 6
    for name, model in models.items():
        torch.save(model.state_dict(), folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in models}


def images() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=random) for w, h in SIZES]


@pytest.mark.parametrize(
    ("model", "build", "classes", "person"),
    [("deeplabv3_resnet50", deeplabv3_resnet50, 21, 15), ("fcn_resnet50", fcn_resnet50, 2, 1)],
)
def test_semantic_models_against_one_image_at_a_time(
    weights: dict[str, Path],
    model: SegmentationModel,
    build: Callable[..., nn.Module],
    classes: int,
    person: int,
) -> None:
    found = load_segmenter(model, weights[model], CPU, input_height=HEIGHT)(images())
    plain = build(weights=None, weights_backbone=None, num_classes=classes, aux_loss=classes == 21)
    plain.load_state_dict(torch.load(weights[model], weights_only=True))
    plain.eval()
    for image, probability in zip(images(), found, strict=True):
        enlarged = interpolate(image[None] / 255, (HEIGHT, HEIGHT // 2), mode="bilinear", antialias=True)
        for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
            enlarged[:, channel] = (enlarged[:, channel] - mean) / std
        with torch.no_grad():
            scores = plain(enlarged)["out"][0]
        expected = scores[person].exp() / scores.exp().sum(0)
        expected = interpolate(expected[None, None], image.shape[-2:], mode="bilinear", antialias=True)[0, 0]
        assert probability.shape == image.shape[-2:] and probability.dtype == torch.float32
        assert 0.01 < probability.mean() < 0.99
        torch.testing.assert_close(probability, expected, atol=2e-5, rtol=0)


def test_mask_rcnn_takes_the_person_at_the_centre(weights: dict[str, Path]) -> None:
    model: SegmentationModel = "maskrcnn_resnet50"
    found = load_segmenter(model, weights[model], CPU, input_height=HEIGHT)(images())
    plain = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=HEIGHT // 2, max_size=2 * HEIGHT
    ).eval()
    plain.load_state_dict(torch.load(weights[model], weights_only=True))
    for image, probability in zip(images(), found, strict=True):
        with torch.no_grad():
            (result,) = plain([image / 255])
        best = None
        for i in range(len(result["scores"])):
            if result["labels"][i] == 1 and result["scores"][i] >= 0.5:
                x1, y1, x2, y2 = result["boxes"][i].tolist()
                x, y = (x1 + x2) / 2 / image.shape[2] - 0.5, (y1 + y2) / 2 / image.shape[1] - 0.5
                if best is None or (x * x + y * y) ** 0.5 < best[0]:
                    best = (x * x + y * y) ** 0.5, result["masks"][i, 0]
        assert best is not None
        # Two images are padded to one size, so that float32 sums run in another order and boxes move by 1e-4
        # pixels: up to 6e-5 in a mask. A mask is stored in steps of 1 / 255, and another instance's differs
        # by 0.7 somewhere.
        torch.testing.assert_close(probability, best[1], atol=1e-3, rtol=0)


def test_the_choice_among_instances() -> None:
    boxes = torch.tensor([[0, 0, 4, 4], [6, 12, 10, 20], [5, 11, 11, 21], [6, 12, 10, 20], [7, 14, 9, 18]])
    found = {
        "boxes": boxes.float(),
        "labels": torch.tensor([1, 1, 1, 2, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.99, 0.4]),
        "masks": torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 32, 16),
    }
    # 1 and 2 are both at the centre, 1 with the higher score; 3 is no person, 4 is unsure.
    assert _central_person(found, (32, 16)).unique().tolist() == [1]
    found["labels"] = torch.full((5,), 3)
    assert _central_person(found, (32, 16)).sum() == 0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return scan_market1501(write_market(tmp_path / "market", identities=1, images=1))


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_masks_mirror_the_data_set_are_resumed_and_convert(
    weights: dict[str, Path], layout: Layout, tmp_path: Path
) -> None:
    folder = tmp_path / "masks"
    settings: dict[str, Any] = {
        "model": "fcn_resnet50",
        "weights": weights["fcn_resnet50"],
        "input_height": HEIGHT,
        "device": "cpu",
    }
    report = segment(layout, folder, batch_size=6, **settings)
    total = sum(map(len, layout.splits.values()))
    assert (report.made, report.kept) == (total, 0)
    before = stamps(folder)
    assert sorted(before) == sorted(
        s.name[:-4] + ".png" for sources in layout.splits.values() for s in sources
    )
    for name in before:
        with Image.open(folder / name) as mask:
            assert (mask.mode, mask.size) == ("L", (16, 32))

    # A killed run leaves some masks, a torn neighbour, and after a power cut a file of no bytes.
    names = sorted(before)
    (folder / names[0]).unlink()
    (folder / names[1]).write_bytes(b"")
    (folder / names[2]).with_name(f".{Path(names[2]).name}.partial").write_bytes(b"torn")
    report = segment(layout, folder, batch_size=4, **settings)
    assert (report.made, report.kept) == (2, total - 2)
    after = stamps(folder)
    assert all(after[name] == before[name] for name in names[2:]) and after.keys() == before.keys()

    for other in (
        {"input_height": 96},
        {"weights": weights["deeplabv3_resnet50"], "model": "deeplabv3_resnet50"},
    ):
        with pytest.raises(UserError, match="made with another"):
            segment(layout, folder, **{**settings, **other})
    assert stamps(folder) == after

    src = tmp_path / "market"
    convert_market1501(src, tmp_path / "out", on_bad_mask="full", mask_options=MaskOptions(str(folder)))
    train = open_shards(tmp_path / "out").split("train")
    by_key = {source.key: source for source in layout.splits["train"]}
    for pair in train.read_many(range(len(train))):
        made = (folder / by_key[pair.key].name).with_suffix(".png").read_bytes()
        assert pair.mask == made or np.asarray(Image.open(io.BytesIO(made))).max() < 128


def test_a_foreign_folder_is_left_alone(weights: dict[str, Path], layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("x")
    with pytest.raises(UserError, match="not ours"):
        segment(
            layout, tmp_path / "mine", model="fcn_resnet50", weights=weights["fcn_resnet50"], device="cpu"
        )
    assert os.listdir(tmp_path / "mine") == ["a.txt"]


def test_two_images_with_one_mask(weights: dict[str, Path], layout: Layout, tmp_path: Path) -> None:
    first = layout.splits["train"][0]
    twin = Source(first.path.with_suffix(".png"), None, 1, 1, "train", "k", first.name[:-4] + ".png")
    with pytest.raises(UserError, match="both have the mask"):
        segment(
            Layout("x", {"train": (first, twin)}), tmp_path / "masks", model="fcn_resnet50",
            weights=weights["fcn_resnet50"], device="cpu",
        )  # fmt: skip
    assert not (tmp_path / "masks").exists()


def test_weights_that_do_not_fit_leave_no_folder(
    weights: dict[str, Path], layout: Layout, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"classifier\.4\.weight is missing"):
        segment(
            layout,
            tmp_path / "masks",
            model="fcn_resnet50",
            weights=weights["maskrcnn_resnet50"],
            device="cpu",
        )
    assert not (tmp_path / "masks").exists()


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("attacked",)


def test_weights_that_do_not_fit(
    weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("not weights")
    torch.save(Attack(), tmp_path / "attack.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"classifier.4.weight": torch.zeros(7, 1)}, tmp_path / "seven.pth")
    torch.save({"classifier.4.weight": torch.zeros(21, 1)}, tmp_path / "torn.pth")
    cases = {
        "text.pth": "not a file of weights",
        "attack.pth": "not a file of weights",
        "list.pth": "no state dict",
        "seven.pth": "7 classes",
        "torn.pth": "not the weights of fcn_resnet50",
        str(weights["maskrcnn_resnet50"]): "classifier.4.weight is missing",
    }
    for name, message in cases.items():
        with pytest.raises(UserError) as caught:
            load_segmenter("fcn_resnet50", tmp_path / name, CPU)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "attacked").exists()
    with pytest.raises(UserError, match="no such file"):
        find_weights("fcn_resnet50", tmp_path / "none.pth")


def test_the_hub_cache_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError) as caught:
        find_weights("maskrcnn_resnet50", None, progress=False)
    message = str(caught.value)
    assert "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth" in message and "--segment-weights" in message
    assert "\n" not in message
    cached = tmp_path / "hub" / "checkpoints" / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    assert not cached.exists()
    cached.write_bytes(b"x")
    assert find_weights("maskrcnn_resnet50", None) == cached


def test_the_commands(weights: dict[str, Path], tmp_path: Path) -> None:
    src = write_market(tmp_path / "market", identities=1, images=1)
    file = weights["fcn_resnet50"]
    flags = (
        "--segment-weights",
        file,
        "--segment-height",
        HEIGHT,
        "--segment-device",
        "cpu",
        "--on-bad-mask",
        "full",
    )
    status, output = run("segment", "market1501", src, tmp_path / "out-masks", "--model", "fcn_resnet50",
                         "--weights", file, "--height", HEIGHT, "--device", "cpu")  # fmt: skip
    assert status == 0 and "masks: 16 made, 0 kept" in output
    status, output = run("convert", "market1501", src, tmp_path / "out", "--segment", "fcn_resnet50", *flags)
    assert status == 0 and "masks: 0 made, 16 kept" in output and "maskreid masks" in output
    direct, _ = run(
        "convert",
        "market1501",
        src,
        tmp_path / "direct",
        "--masks",
        tmp_path / "out-masks",
        "--on-bad-mask",
        "full",
    )
    assert (
        direct == 0
        and open_shards(tmp_path / "direct").fingerprint == open_shards(tmp_path / "out").fingerprint
    )
    for wrong, message in (
        (("--mask-kind", "parsing"), "leave out --mask-kind"),
        (("--masks", "m/{stem}.png"), "without fields"),
    ):
        status, output = run(
            "convert", "market1501", src, tmp_path / "no", "--segment", "fcn_resnet50", *flags, *wrong
        )
        assert status == 2 and message in output and output.count("\n") == 1
    status, output = run("convert", "market1501", src, tmp_path / "no", "--segment-weights", file)
    assert status == 2 and "without --segment" in output
    # An output that is taken is said before masks are made.
    others = ("--segment", "fcn_resnet50", "--masks", tmp_path / "others")
    status, output = run("convert", "market1501", src, tmp_path / "out", *others, *flags)
    assert status == 2 and "already holds shards" in output and not (tmp_path / "others").exists()


def test_weights_with_frozen_statistics(weights: dict[str, Path], tmp_path: Path) -> None:
    """The published Mask R-CNN weights hold no batch counters, and mean eps 0."""
    state = torch.load(weights["maskrcnn_resnet50"], weights_only=True)
    torch.save({k: v for k, v in state.items() if "num_batches_tracked" not in k}, tmp_path / "frozen.pth")
    segmenter = load_segmenter("maskrcnn_resnet50", tmp_path / "frozen.pth", CPU)
    assert isinstance(segmenter, InstanceSegmenter)
    norms = [m for m in segmenter.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 53 and all(norm.eps == 0 for norm in norms)


def test_a_bmp_gets_the_mask_of_its_pixels(tmp_path: Path) -> None:
    """VIPeR's images are BMP; the mask lies where `--masks` looks for it."""
    Image.new("RGB", (5, 7), (255, 0, 51)).save(tmp_path / "000_45.bmp")
    source = Source(tmp_path / "000_45.bmp", None, 1, 1, "train", "p00000001_00000", "cam_a/000_45.bmp")
    red = write_masks([source], tmp_path / "masks", lambda images: [image[2] / 255 for image in images])
    assert (red.made, red.kept, red.empty) == (1, 0, 1)
    mask = place_masks(Layout("viper", {"train": (source,)}), MaskOptions(str(tmp_path / "masks")))
    path = mask.splits["train"][0].mask_path
    assert path is not None and np.asarray(Image.open(path)).tolist() == [[51] * 5] * 7


def left_half(images: list[torch.Tensor]) -> list[torch.Tensor]:
    """A segmenter: the left half of the image is the person."""
    masks = [torch.zeros(image.shape[1:]) for image in images]
    for mask in masks:
        mask[:, : mask.shape[1] // 2] = 1
    return masks


def test_masks_are_of_the_image_as_a_shard_shows_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "src/0001").mkdir(parents=True)
    Image.new("RGB", (32, 16), (9, 9, 9)).save(tmp_path / "src/0001/a.jpg", exif=exif)
    layout = scan_folder(tmp_path / "src")
    sources = list(layout.sources())
    with pytest.raises(ShardError):
        write_masks(sources, tmp_path / "none", left_half)  # type: ignore[arg-type]
    for policy, size in (("transpose", (16, 32)), ("ignore", (32, 16))):
        write_masks(sources, tmp_path / policy, left_half, on_orientation=policy)  # type: ignore[arg-type]
        options = MaskOptions(str(tmp_path / policy))
        out = tmp_path / f"{policy}-shards"
        convert(layout, out, dataset="x", mask_options=options, on_orientation=policy)  # type: ignore[arg-type]
        image, mask = decode_pair(open_shards(out).split("train").read(0))
        assert image.size == mask.size == size
        assert np.asarray(mask)[:, 0].min() == 255 and np.asarray(mask)[:, -1].max() == 0


def test_masks_made_for_another_orientation_are_not_kept(tmp_path: Path) -> None:
    def begin(policy: str) -> None:
        settings = SegmentationSettings("fcn_resnet50", "0", on_orientation=policy)  # type: ignore[arg-type]
        if is_new_folder(tmp_path, settings):
            (tmp_path / "segmentation.json").write_text(json.dumps(asdict(settings)))

    begin("fail")
    begin("transpose")  # no image had one
    (tmp_path / "segmentation.json").unlink()
    begin("transpose")
    begin("transpose")
    with pytest.raises(UserError, match="another on_orientation"):
        begin("ignore")


@pytest.mark.parametrize("name", ["/data/a.png", "../a.png"])
def test_no_mask_is_written_beside_the_originals(tmp_path: Path, name: str) -> None:
    source = Source(tmp_path / "a.png", None, 1, 1, "train", "k", name)
    with pytest.raises(ShardError, match="relative to the data set"):
        mask_files([source], tmp_path / "masks")
    with pytest.raises(ShardError, match="its own mask"):
        mask_files([replace(source, name="a.png")], tmp_path)
