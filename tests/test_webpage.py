"""The page that computes in the browser: the program's preprocessing and ranked lists, from a file alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, Page, chromium
from maskreid_dist.errors import UserError
from maskreid_dist.gallery import Extractor, Gallery
from maskreid_dist.gallery.enrol import enrol
from maskreid_dist.webpage.runtime import FILES, TARBALL, find_runtime
from maskreid_dist.webpage.site import MANIFEST, check_page_folder
from maskreid_shards import RemoteError, Split, open_shards
from program import run as maskreid

NETWORK, WALKERS = "pretrained:walkers", Path(__file__).parent.parent / "shards" / "walkers"
PERSONS, NEAREST = 12, 10
SAID = "document.getElementById('status').textContent"
DONE = f"""new Promise(done => {{
  const look = () => / ms$|: /.test({SAID}) ? done({SAID}) : setTimeout(look, 20);
  look();
}})"""
LIST = "[...document.querySelectorAll('li')].map(i => [i.dataset.key, +i.querySelector('b').textContent])"


def crop_of(split: Split, number: int, folder: Path) -> tuple[Path, Path]:
    """A sample's image and mask as files."""
    raw = split.read(number)
    image, mask = folder / f"{raw.key}.jpg", folder / f"{raw.key}.png"
    image.write_bytes(raw.image)
    mask.write_bytes(raw.mask)
    return image, mask


def odd_crop(folder: Path) -> tuple[Path, Path]:
    """Noise of an odd size, without loss, and a mask of another size."""
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (211, 97, 3), np.uint8)).save(folder / "odd.png")
    Image.fromarray(random.integers(0, 256, (33, 40), np.uint8)).save(folder / "odd.mask.png")
    return folder / "odd.png", folder / "odd.mask.png"


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor.of(NETWORK)


@pytest.fixture(scope="module")
def gallery(extractor: Extractor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures each of a few persons, the first of them that of the first query."""
    folder = tmp_path_factory.mktemp("enrolled")
    split = open_shards(WALKERS).split("gallery")
    first = int(open_shards(WALKERS).split("query").pids[0])
    others = [pid for pid in np.unique(split.pids).tolist() if pid > 0 and pid != first]
    for pid in [first, *others[: PERSONS - 1]]:
        files = [crop_of(split, int(n), folder) for n in np.flatnonzero(split.pids == pid)[:2]]
        images, masks = zip(*files, strict=True)
        enrol(folder / "gallery", extractor, images, masks, pid=pid, camid=1)
    return folder / "gallery"


@pytest.fixture(scope="module")
def site(gallery: Path) -> Path:
    pytest.importorskip("onnxscript")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium in the PATH")
    try:
        find_runtime()
    except RemoteError as error:
        pytest.skip(f"{TARBALL} is not here, and cannot be fetched: {error}")
    status, said = maskreid("page", NETWORK, "--out", gallery.parent / "site", "--gallery", gallery)
    assert status == 0 and "24 images" in said, said
    return gallery.parent / "site"


@pytest.fixture(scope="module")
def page(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        page.open(site / "index.html")
        yield page
        assert page.problems == []
        assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []


def give(page: Page, field: str, file: Path) -> str:
    """Choose a file; what the page says in the end."""
    page.value(f"{SAID.replace('.textContent', '')}.textContent = ''")
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector=f"#{field}")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)
    return str(page.value(DONE))


def pixels(page: Page, canvas: str) -> np.ndarray[Any, Any]:
    """(H, W, 3)."""
    found = page.value(
        f"(() => {{ const c = document.getElementById('{canvas}'), {{width, height}} = c;"
        "return [height, width, ...c.getContext('2d').getImageData(0, 0, width, height).data]; })()"
    )
    return np.array(found[2:], np.uint8).reshape(*found[:2], 4)[..., :3]


def searched(gallery: Path, *words: object) -> list[tuple[str, float]]:
    status, said = maskreid("search", NETWORK, gallery, *words, "--top", NEAREST, "--json")
    assert status == 0, said
    return [(match["key"], match["similarity"]) for match in json.loads(said)[0]["matches"]]


def called(gallery: Path, key: str) -> str:
    """How the page calls an image."""
    with Gallery.open(gallery) as opened:
        row = list(opened.keys).index(key)
        return f"person {opened.pids[row]}, camera {opened.camids[row]}"


def test_the_page_finds_what_search_finds(
    page: Page, extractor: Extractor, gallery: Path, tmp_path: Path
) -> None:
    crop, mask = crop_of(open_shards(WALKERS).split("query"), 0, tmp_path)
    odd, odd_mask = odd_crop(tmp_path)
    fields = {crop: "crop", mask: "mask-file", odd: "crop", odd_mask: "mask-file"}
    for files in ([crop], [crop, mask], [odd], [odd, odd_mask]):
        assert give(page, fields[files[-1]], files[-1]).endswith(" ms")
        expected = searched(gallery, *" --mask ".join(map(str, files)).split())
        found = page.value(LIST)[:NEAREST]
        assert [key for key, _ in found] == [key for key, _ in expected]
        first = called(gallery, expected[0][0])
        assert page.value("document.querySelector('li span').textContent") == first
        differences = [abs(one[1] - other[1]) for one, other in zip(found, expected, strict=True)]
        assert max(differences) < 1e-4  # between onnxruntime and torch, as maskreid export allows
        alone = "whole picture" in page.value("document.getElementById('mask-note').textContent")
        assert alone == (len(files) == 1)
    whole = extractor.transform(*extractor.pair(odd, odd_mask))  # the last, which is without loss
    assert np.array_equal(pixels(page, "seen"), whole[0].permute(1, 2, 0).numpy())
    assert np.array_equal(pixels(page, "mask")[..., :1], whole[1].permute(1, 2, 0).numpy())


def test_what_is_no_picture_is_said(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    assert give(page, "crop", tmp_path / "notes.txt").startswith("notes.txt: ")
    crop, _ = crop_of(open_shards(WALKERS).split("query"), 1, tmp_path)
    assert "mask is grey" in give(page, "mask-file", crop)
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    assert page.value("document.documentElement.scrollWidth") <= 390


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    status, said = maskreid("page", NETWORK, "--out", tmp_path)
    assert status == 2 and "not empty, and no page" in " ".join(said.split())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / MANIFEST).write_text('{"format": "another"}')
    with pytest.raises(UserError, match="not of a page of maskreid's"):
        check_page_folder(tmp_path)
    (tmp_path / MANIFEST).write_text('{"format": "maskreid-page-1"}')
    check_page_folder(tmp_path)
    status, said = maskreid("page", NETWORK, "--out", tmp_path / "x", "--gallery", tmp_path, "--shards", "y")
    assert status == 2 and "give one of them" in " ".join(said.split())


def test_another_runtime_is_refused(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(b"another")
    with pytest.raises(UserError, match=r"ort\.wasm.* is not that of onnxruntime-web"):
        find_runtime(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        find_runtime(tmp_path / "nowhere")
    (tmp_path / TARBALL).write_bytes(b"no archive")
    with pytest.raises(UserError, match="not the tarball of onnxruntime-web"):
        find_runtime(tmp_path / TARBALL)
