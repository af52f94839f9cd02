"""Masks of every form against a reference of loops over pixels; where they are looked for; what is
counted."""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from market import jpeg, png, write_market
from maskreid_shards import (
    MaskOptions,
    ShardError,
    convert,
    convert_market1501,
    open_shards,
    place_masks,
    scan_csv,
    scan_market1501,
)
from maskreid_shards.masks.policy import full_mask, read_mask
from program import run
from test_shards_convert import tree

SIZE = (6, 9)
LABELS = np.random.default_rng(3).choice([0, 1, 2, 15], (SIZE[1], SIZE[0])).astype(np.uint8)
SOFT = np.random.default_rng(4).integers(0, 256, (SIZE[1], SIZE[0])).astype(np.uint8)

# How each form of PNG holds the values of an 8-bit array.
SAVES: dict[str, Callable[[NDArray[np.uint8]], Image.Image]] = {
    "grey": Image.fromarray,
    "palette": lambda values: _palette(values),
    "16 bit": lambda values: Image.fromarray(values.astype(np.uint16)),
    "rgb": lambda values: Image.fromarray(np.stack([values] * 3, axis=2)),
}


def _palette(values: NDArray[np.uint8]) -> Image.Image:
    picture = Image.frombytes("P", values.shape[::-1], values.tobytes())
    picture.putpalette([channel for value in range(256) for channel in (value, 255 - value, 7)])
    return picture


def saved(path: Path, picture: Image.Image, **options: int) -> Path:
    picture.save(path, "PNG", **options)
    return path


def read(
    path: Path, options: MaskOptions, size: tuple[int, int] = SIZE
) -> tuple[NDArray[np.uint8], list[str]]:
    """The pixels read, and the kinds of what was counted."""
    data, found = read_mask(path, size, where="x", options=options)
    assert data is not None, found
    again, _ = read_mask(path, size, where="x", options=options)
    assert again == data
    picture = Image.open(io.BytesIO(data))
    assert (picture.mode, picture.format, picture.size) == ("L", "PNG", size) and data[24] == 8
    return np.asarray(picture), [problem.kind for problem in found]


def by_pixel(values: NDArray[np.uint8], options: MaskOptions) -> NDArray[np.uint8]:
    result = np.zeros_like(values)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value = int(values[row, column])
            if options.kind == "soft":
                result[row, column] = 255 - value if options.invert else value
            else:
                person = value in options.person_labels if options.kind == "label" else value > 0
                result[row, column] = 255 if person != options.invert else 0
    return result


MEANINGS = [
    MaskOptions(kind="label", person_labels=(15,)),
    MaskOptions(kind="label", person_labels=(2, 15)),
    MaskOptions(kind="label", person_labels=(15,), invert=True),
    MaskOptions(kind="parsing"),
    MaskOptions(kind="parsing", invert=True),
]


@pytest.mark.parametrize("form", SAVES)
@pytest.mark.parametrize("options", MEANINGS, ids=MaskOptions.describe)
def test_labels(tmp_path: Path, form: str, options: MaskOptions) -> None:
    path = saved(tmp_path / "m.png", SAVES[form](LABELS))
    pixels, found = read(path, options)
    assert np.array_equal(pixels, by_pixel(LABELS, options))
    assert found == (["grey"] if form == "rgb" else [])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits(tmp_path: Path, bits: int) -> None:
    """Pillow scales grey of 2 and 4 bits to 0..255; palettes it does not. Written by hand: Pillow writes
    neither."""
    values = LABELS % 2**bits
    for label in range(1, 2**bits):
        options = MaskOptions(kind="label", person_labels=(label,))
        if not (values == label).any():
            continue
        palette = saved(tmp_path / "palette.png", _palette(values), bits=bits)
        assert palette.read_bytes()[24] == bits
        for path in (palette, few_bits_png(tmp_path / "grey.png", values, bits)):
            assert np.array_equal(read(path, options)[0], by_pixel(values, options))


def few_bits_png(path: Path, values: NDArray[np.uint8], bits: int) -> Path:
    """A grey PNG of 1, 2 or 4 bits a pixel, after the PNG specification."""
    import struct
    import zlib

    rows = b""
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("invert", [False, True])
def test_soft_values_are_kept(tmp_path: Path, invert: bool) -> None:
    options = MaskOptions(invert=invert)
    grey_palette = Image.frombytes("P", SIZE, SOFT.tobytes())
    grey_palette.putpalette([value for value in range(256) for _ in range(3)])
    for form, picture in (("L", SAVES["grey"](SOFT)), ("RGB", SAVES["rgb"](SOFT)), ("P", grey_palette)):
        path = saved(tmp_path / f"{form}.png", picture)
        pixels, found = read(path, options)
        assert np.array_equal(pixels, by_pixel(SOFT, options))
        assert found == ([] if form == "L" else ["grey"])
    black_and_white = saved(tmp_path / "1.png", Image.fromarray(SOFT).convert("1", dither=Image.Dither.NONE))
    expected = np.where(SOFT >= 128, 255, 0)
    pixels, found = read(black_and_white, options)
    assert np.array_equal(pixels, 255 - expected if invert else expected) and found == ["grey"]


def test_original_bytes_unless_something_changes(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", Image.fromarray(SOFT), compress_level=0)
    assert read_mask(path, SIZE, where="x") == (path.read_bytes(), ())
    few = few_bits_png(tmp_path / "few.png", np.eye(9, 6, dtype=np.uint8) * 15, 4)
    data, found = read_mask(few, SIZE, where="x")
    assert data is not None and data != few.read_bytes() and not found
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.eye(9, 6) * 255)


def test_labels_are_resized_to_the_nearest_pixel(tmp_path: Path) -> None:
    options = MaskOptions(kind="label", person_labels=(15,))
    path = saved(tmp_path / "m.png", Image.fromarray(LABELS))
    width, height = 10, 15
    expected = np.zeros((height, width), np.uint8)
    for row in range(height):
        for column in range(width):
            source = LABELS[int((row + 0.5) * SIZE[1] / height), int((column + 0.5) * SIZE[0] / width)]
            expected[row, column] = 255 if source == 15 else 0
    pixels, found = read(path, options, (width, height))
    assert np.array_equal(pixels, expected) and found == ["resized"]


def test_soft_masks_are_resized_bilinearly(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", Image.fromarray(SOFT))
    width, height = 2 * SIZE[0], 2 * SIZE[1]
    padded = np.pad(SOFT.astype(float), 1, mode="edge")
    expected = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y, x = (row + 0.5) / 2 + 0.5, (column + 0.5) / 2 + 0.5
            top, left, down, right = int(y), int(x), y % 1, x % 1
            expected[row, column] = (
                padded[top, left] * (1 - down) * (1 - right)
                + padded[top, left + 1] * (1 - down) * right
                + padded[top + 1, left] * down * (1 - right)
                + padded[top + 1, left + 1] * down * right
            )
    pixels, found = read(path, MaskOptions(), (width, height))
    assert np.abs(pixels - expected).max() <= 1 and found == ["resized"]


def _cut_out(mode: str) -> Image.Image:
    """A picture whose alpha is SOFT."""
    picture = Image.effect_noise(SIZE, 90).convert(mode)
    picture.putalpha(Image.fromarray(SOFT))
    return picture


@pytest.mark.parametrize(
    ("picture", "expected", "change"),
    [
        (_cut_out("RGB"), SOFT, "alpha"),
        (_cut_out("L"), SOFT, "alpha"),
        (Image.merge("LA", [Image.fromarray(SOFT), Image.new("L", SIZE, 255)]), SOFT, "grey"),
        (Image.merge("RGBA", [Image.fromarray(SOFT)] * 3 + [Image.new("L", SIZE, 7)]), SOFT, "grey"),
        (Image.fromarray(SOFT.astype(np.uint16) * 257), SOFT, "grey"),
        (
            Image.merge("RGB", [Image.fromarray(SOFT // 2 + n) for n in (120, 121, 122)]),
            SOFT // 2 + 121,
            "grey",
        ),
    ],
)
def test_soft_masks_of_other_modes(
    tmp_path: Path, picture: Image.Image, expected: NDArray[np.uint8], change: str
) -> None:
    pixels, found = read(saved(tmp_path / "m.png", picture), MaskOptions())
    assert found == [change] and np.array_equal(pixels, expected)


@pytest.mark.parametrize("form", ["BMP", "TIFF", "JPEG"])
def test_masks_of_other_formats(tmp_path: Path, form: str) -> None:
    values = np.where(SOFT > 99, 255, 0).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "m.png", form, quality=100)
    pixels, found = read(tmp_path / "m.png", MaskOptions())
    assert found == ["format"] and np.abs(pixels.astype(int) - values).max() <= (4 if form == "JPEG" else 0)
    data, problems = read_mask(tmp_path / "m.png", SIZE, where="x", options=MaskOptions(kind="parsing"))
    assert (data is None) == (form == "JPEG") and ("blurs labels" in problems[0].detail) == (form == "JPEG")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (SOFT, SOFT),
        (SOFT > 99, np.where(SOFT > 99, 255, 0)),
        (SOFT / np.float32(255), SOFT),
        (np.asfortranarray(SOFT[None]).astype(np.int64), SOFT),
        (np.zeros((9, 6, 15)), "an array of 9 x 6 x 15"),
        (np.full((9, 6), np.nan), "from nan to nan"),
        (np.full((9, 6), 256), "from 256 to 256"),
        (np.array([[None]]), "not a readable NumPy file"),
    ],
)
def test_masks_that_are_numpy_files(
    tmp_path: Path, values: NDArray[np.generic], expected: NDArray[np.uint8] | str
) -> None:
    np.save(tmp_path / "m.npy", values, allow_pickle=True)
    data, found = read_mask(tmp_path / "m.npy", SIZE, where="x")
    if isinstance(expected, str):
        assert data is None and found[0].kind == "unreadable" and expected in found[0].detail
    else:
        assert data is not None and [problem.kind for problem in found] == ["format"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)


def test_a_numpy_file_that_lies_about_its_size(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", SOFT)
    data = (tmp_path / "m.npy").read_bytes().replace(b"(9, 6)", b"(9, 7)")
    for spoiled in (data, data[:-1], data[:20]):
        (tmp_path / "m.npy").write_bytes(spoiled)
        assert read_mask(tmp_path / "m.npy", SIZE, where="x")[1][0].kind == "unreadable"


OTHER_NAMES = ("a.PNG", "a.jpg", "a.JPEG", "a.bmp", "a.tif", "a.npy", "a.jpg.png", "a.jpg.npy", "a_mask.png")


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", OTHER_NAMES)
def test_masks_under_other_names(tmp_path: Path, name: str, given: bool) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jpg").write_bytes(jpeg(1, SIZE))
    folder = tmp_path / ("masks/x" if given else "x_seg")
    folder.mkdir(parents=True)
    values = np.where(SOFT > 99, 255, 0).astype(np.uint8)
    if name.endswith(".npy"):
        np.save(folder / name, values)
    else:
        Image.fromarray(values).save(folder / name)
    (folder / "b.png").write_bytes(b"of another")
    (tmp_path / "list.csv").write_text("path,pid,camid,split\nx/a.jpg,1,1,train\n")
    options = MaskOptions(str(tmp_path / "masks")) if given else MaskOptions()
    report = convert(scan_csv(tmp_path / "list.csv"), tmp_path / "out", dataset="x", mask_options=options)
    assert report.manifest.masks.bad == 0
    assert f"masks: 1 found under another name or suffix: {name} of x/a.jpg" in report.lines()
    stored = open_shards(tmp_path / "out").split("train").read(0).mask
    assert np.abs(np.asarray(Image.open(io.BytesIO(stored))).astype(int) - values).max() < 128


def test_an_image_is_not_found_as_its_own_mask(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1, SIZE))
    (tmp_path / "list.csv").write_text("path,pid,camid,split\na.jpg,1,1,train\n")
    layout = place_masks(scan_csv(tmp_path / "list.csv"), MaskOptions(str(tmp_path)))
    assert layout.splits["train"][0].mask_path == tmp_path / "a.png"


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ("train_seg/0001/c1-person.png", "found c1-person.png: --masks '"),
        ("train_seg/0001/other.png", "0001 holds other.png and the like"),
        ("masks/0001/c1.png", "there is no folder 0001"),
    ],
)
def test_a_missing_mask_says_what_lies_there(tmp_path: Path, there: str, said: str) -> None:
    image = tmp_path / "own/train/0001/c1.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(jpeg(1))
    mask = tmp_path / "own" / there
    mask.parent.mkdir(parents=True)
    mask.write_bytes(png(1))
    status, output = run("convert", "folder", tmp_path / "own", tmp_path / "out", "--workers", 1)
    assert status == 2 and said in output and len(output.splitlines()) == 1, output
    pattern = there.replace("train", "{split}").replace("0001", "{pid}").replace("c1", "{stem}")
    if "other" not in there:
        options = ("--masks", pattern, "--workers", 1)
        status, output = run("convert", "folder", tmp_path / "own", tmp_path / "out", *options)
        assert status == 0 and "1 checked, 0 bad" in output, output


@pytest.mark.parametrize(
    ("picture", "options", "kind"),
    [
        (Image.new("RGB", SIZE, (255, 255, 0)), MaskOptions(), "mode"),
        (Image.new("RGBA", SIZE, (255, 9, 255, 255)), MaskOptions(), "mode"),
        (Image.new("I;16", SIZE, 999), MaskOptions(), "mode"),
        (Image.new("RGB", SIZE, (1, 2, 3)), MaskOptions(kind="parsing"), "mode"),
        (_cut_out("L"), MaskOptions(kind="parsing"), "mode"),
        (Image.new("L", SIZE, 255), MaskOptions(invert=True), "empty"),
        (Image.new("L", SIZE, 15), MaskOptions(), "empty"),
        (Image.new("L", SIZE, 14), MaskOptions(kind="label", person_labels=(15,)), "empty"),
        (Image.new("L", SIZE, 0), MaskOptions(kind="parsing"), "empty"),
    ],
)
def test_bad_masks(tmp_path: Path, picture: Image.Image, options: MaskOptions, kind: str) -> None:
    data, found = read_mask(saved(tmp_path / "m.png", picture), SIZE, where="x", options=options)
    assert data is None and [problem.kind for problem in found] == [kind]


def test_options_are_plain_values() -> None:
    options = MaskOptions("masks/{stem}.png", "label", (15, 2), True)
    assert pickle.loads(pickle.dumps(options)) == options
    assert json.loads(json.dumps(asdict(options)))["person_labels"] == [15, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "colour"}, "use one of soft, label, parsing"),
        ({"kind": "label"}, "at least one person label"),
        ({"person_labels": (15,)}, "none with the other kinds"),
        ({"kind": "label", "person_labels": (-1,)}, "0 to 65535"),
        (
            {"location": "m/{view}/{stem}.png"},
            "unknown field {view}; there are {folder}, {name}, {stem}, {split}, {pid}, {camid}",
        ),
        ({"location": "m/{stem.parent}.png"}, "unknown field"),
        ({"location": "m/{folder}.png"}, "neither {stem} nor {name}"),
        ({"location": "m/{stem.png"}, "braces"),
    ],
)
def test_wrong_options(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ShardError) as caught:
        MaskOptions(**arguments)  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_market(tmp_path / "market", identities=2, images=2)


def test_locations_give_the_same_shards(src: Path, tmp_path: Path) -> None:
    convert_market1501(src, tmp_path / "sibling")
    expected = tree(tmp_path / "sibling")
    for split, folder in (
        ("train", "bounding_box_train"),
        ("query", "query"),
        ("gallery", "bounding_box_test"),
    ):
        here = src / f"{folder}_seg"
        (tmp_path / "mirror" / folder).mkdir(parents=True)
        (tmp_path / "flat" / split).mkdir(parents=True)
        for mask in sorted(here.iterdir()):
            (tmp_path / "mirror" / folder / mask.name).write_bytes(mask.read_bytes())
            (tmp_path / "flat" / split / f"{mask.stem}.jpg.mask").write_bytes(mask.read_bytes())
        here.rename(tmp_path / f"moved_{folder}")
    for number, location in enumerate(("mirror", "moved_{folder}/{stem}.png", "flat/{split}/{name}.mask")):
        out = tmp_path / f"out{number}"
        convert_market1501(src, out, mask_options=MaskOptions(str(tmp_path / location)))
        assert tree(out) == expected
    with pytest.raises(ShardError, match="no such folder of masks"):
        convert_market1501(src, tmp_path / "out", mask_options=MaskOptions(str(tmp_path / "nowhere")))
    with pytest.raises(ShardError, match=r"no mask file"):
        convert_market1501(src, tmp_path / "out", mask_options=MaskOptions(str(tmp_path / "flat")))


def test_two_images_with_one_mask(src: Path, tmp_path: Path) -> None:
    layout = scan_market1501(src)
    first = layout.splits["train"][0]
    twin = replace(first, name=first.name[:-4] + ".png")
    layout = replace(layout, splits={"train": (first, twin)})
    with pytest.raises(ShardError, match="both have the mask"):
        place_masks(layout, MaskOptions(str(tmp_path)))
    placed = place_masks(layout, MaskOptions("m/{folder}/{name}.png")).splits["train"]
    assert [str(source.mask_path) for source in placed] == [f"m/{first.name}.png", f"m/{twin.name}.png"]


def test_a_conversion_reads_counts_and_records_the_form(src: Path, tmp_path: Path) -> None:
    masks = [source.mask_path for sources in scan_market1501(src).splits.values() for source in sources]
    for number, mask in enumerate(masks):
        assert mask is not None
        person = np.asarray(Image.open(mask)) > 0
        labels = Image.fromarray(np.where(person, 15, 3).astype(np.uint8))
        if number == 0:
            labels = labels.resize((32, 64), Image.Resampling.NEAREST)
        if number == 1:
            labels = labels.convert("RGB")
        if number == 2:
            labels = Image.new("L", labels.size, 3)
        labels.save(mask)
    options = MaskOptions(kind="label", person_labels=(15,))
    report = convert_market1501(src, tmp_path / "out", on_bad_mask="full", mask_options=options)
    counts = {kind: count for kind, count in report.manifest.masks.counts.items() if count}
    assert counts == {"resized": 1, "grey": 1, "empty": 1} and report.manifest.masks.bad == 1
    assert report.manifest.masks.form == "label 15"
    assert "masks: 1 resized" in report.lines()
    shards = open_shards(tmp_path / "out")
    assert shards.manifest == report.manifest
    again = convert_market1501(src, tmp_path / "again", on_bad_mask="full", mask_options=options)
    assert again.manifest.fingerprint == report.manifest.fingerprint
    train = shards.split("train")
    stored = {pair.key: pair.mask for pair in train.read_many(range(len(train)))}
    assert full_mask((16, 32)) in stored.values()
    for source in scan_market1501(src).splits["train"][3:]:
        assert source.mask_path is not None
        expected = by_pixel(np.asarray(Image.open(source.mask_path)), options)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored[source.key]))), expected)


def test_the_options_of_convert(src: Path, tmp_path: Path) -> None:
    for mask in src.rglob("*_seg/*.png"):
        person = np.asarray(Image.open(mask)) > 0
        Image.fromarray(np.where(person, 15, 3).astype(np.uint8)).save(mask)
    pattern = ("--masks", src / "{folder}_seg" / "{stem}.png")
    status, output = run("convert", "market1501", src, tmp_path / "labels", *pattern, "--person-label", 15)
    assert status == 0 and "0 bad" in output
    status, output = run(
        "convert", "market1501", src, tmp_path / "inverted", "--person-label", 3, "--invert-masks"
    )
    assert status == 0
    shards = [open_shards(tmp_path / name).split("train") for name in ("labels", "inverted")]
    assert shards[0].fingerprint == shards[1].fingerprint
    status, output = run("convert", "market1501", src, tmp_path / "parsing", "--mask-kind", "parsing")
    assert status == 0 and open_shards(tmp_path / "parsing").manifest.masks.form == "parsing"
    for wrong, message in (
        (("--person-label", 15, "--mask-kind", "parsing"), "none with the other kinds"),
        (("--mask-kind", "label"), "at least one person label"),
        (("--masks", "m/{view}.png"), "unknown field"),
        (("--masks", tmp_path / "nowhere"), "no such folder of masks"),
        ((), "needs its person labels"),
    ):
        status, output = run("convert", "market1501", src, tmp_path / "no", *wrong)
        assert status == 2 and message in output and output.count("\n") == 1
    assert not (tmp_path / "no").exists()


def _map(*levels: int) -> Image.Image:
    """Levels in broad stripes over 0, as label maps have them."""
    values = np.zeros((24, 16), np.uint8)
    for number, level in enumerate(levels):
        values[:, 4 * number : 4 * number + 4] = level
    return Image.fromarray(values)


def _edged() -> Image.Image:
    """A soft mask of few levels: an edge of one pixel below 128 round the person."""
    values = np.zeros((24, 16), np.uint8)
    values[3:21, 3:13], values[4:20, 4:12] = 100, 255
    return Image.fromarray(values)


def _enlarged() -> Image.Image:
    """A soft mask of few levels, enlarged to 64 x 128 pixels: steps of four pixels."""
    values = np.zeros((32, 16), np.uint8)
    values[3:29, 3:13], values[4:28, 4:12], values[5:27, 5:11] = 85, 170, 255
    return Image.fromarray(values.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (_map(15, 255), "labels"),
        (_map(1, 2, 255), "labels"),
        (_map(255), None),
        (_map(128, 255), None),  # a trimap: 128 is person
        (_map(60, 200, 255), "labels"),
        (_map(200, 30, 220), "labels"),
        (_enlarged(), None),
        (_map(50, 200), "labels"),
        (_edged(), None),
        (_map(15), "empty"),
    ],
)
@pytest.mark.parametrize("inverted", [False, True])
def test_a_label_map_is_no_soft_mask(
    tmp_path: Path, picture: Image.Image, kind: str | None, inverted: bool
) -> None:
    path = saved(tmp_path / "m.png", picture)
    data, found = read_mask(path, picture.size, where="x", options=MaskOptions(invert=inverted))
    if inverted and kind == "empty":
        kind = None  # 240 in the person's place
    assert (data is None) == (kind is not None) and [problem.kind for problem in found] == [kind] * bool(kind)
    if kind:
        assert "--mask-kind label --person-label" in found[0].detail


@pytest.mark.parametrize(
    ("mask", "image", "kind"),
    [
        ((8, 16), (16, 32), "resized"),
        ((13, 31), (50, 123), "resized"),  # a quarter, rounded up or down
        ((16, 16), (16, 32), "aspect"),
        ((32, 16), (16, 32), "swapped"),
        ((48, 24), (16, 32), "swapped"),
        ((16, 32), (32, 16), "swapped"),
    ],
)
def test_a_mask_of_another_aspect(
    tmp_path: Path, mask: tuple[int, int], image: tuple[int, int], kind: str
) -> None:
    path = saved(tmp_path / "m.png", Image.new("L", mask, 255))
    data, found = read_mask(path, image, where="x")
    assert [problem.kind for problem in found] == [kind] and (data is None) == (kind == "swapped")


def test_most_masks_replaced_is_the_last_word(tmp_path: Path) -> None:
    src = write_market(tmp_path / "m")
    for mask in sorted((src / "bounding_box_train_seg").iterdir()):
        _map(15, 255).resize((16, 32), Image.Resampling.NEAREST).save(mask)
    status, output = run("convert", "market1501", src, tmp_path / "out", "--workers", 1)
    assert status == 2 and "--mask-kind label" in output and not (tmp_path / "out").exists()
    options = ("--workers", 1, "--on-bad-mask")
    status, output = run("convert", "market1501", src, tmp_path / "out", *options, "full")
    last = output.splitlines()[-1]
    assert status == 0 and last.startswith("MOST MASKS WERE BAD, 25 of 39, mostly a label map"), output
    assert "FULL ONES TOOK THEIR PLACE" in last
