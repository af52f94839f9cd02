"""Bad images and masks: found before the first byte where that is cheap, named together, left out where that
is asked; what was finished stays, whatever ends a conversion."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from market import write_market
from maskreid_shards import ShardError, convert_market1501, open_shards, scan_market1501, verify
from maskreid_shards.bad_inputs import CAP
from program import run
from test_shards_convert import names, tree

SHARD_BYTES = 12_000


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_market(tmp_path / "market", identities=10)


def cut(path: Path) -> None:
    """Spoil it so that only decoding finds it."""
    path.write_bytes(path.read_bytes()[:-300])


def train(src: Path) -> list[Path]:
    return [source.path for source in scan_market1501(src).splits["train"]]


def test_what_shows_at_first_sight_is_named_before_the_first_byte(src: Path, tmp_path: Path) -> None:
    first, *_, last = train(src)
    last.write_bytes(b"")
    (tmp_path / "nowhere").mkdir()
    first.unlink()
    first.symlink_to(tmp_path / "nowhere" / "gone.jpg")
    masks = sorted((src / "query_seg").iterdir())
    masks[0].unlink()
    with pytest.raises(ShardError) as caught:
        convert_market1501(src, tmp_path / "out", shard_bytes=SHARD_BYTES)
    said = str(caught.value)
    assert "2 images cannot be used" in said and "1 mask cannot be used" in said and "\n" not in said
    assert all(name in said for name in (first.name, last.name, masks[0].stem, "an empty file"))
    assert names(tmp_path) == ["market", "nowhere"]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_images_are_named_together_and_the_good_shards_stay(
    src: Path, tmp_path: Path, workers: int
) -> None:
    convert_market1501(src, tmp_path / "whole", shard_bytes=SHARD_BYTES)
    originals = {path: path.read_bytes() for path in train(src)[::15]}
    for path in originals:
        cut(path)
    with pytest.raises(ShardError) as caught:
        convert_market1501(src, tmp_path / "out", shard_bytes=SHARD_BYTES, workers=workers)
    said = str(caught.value)
    assert f"{len(originals)} images cannot be used" in said and "\n" not in said
    assert all(path.name in said for path in originals)
    kept = len(list((tmp_path / ".out.maskreid-partial" / ".resume").iterdir()))
    assert kept > 3 and f"{kept} finished shards are kept" in said
    for path, data in originals.items():
        path.write_bytes(data)
    report = convert_market1501(src, tmp_path / "out", shard_bytes=SHARD_BYTES, workers=workers)
    assert f"{kept} of " in report.notes[0]
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_failed_conversion_goes_on_under_another_policy(src: Path, tmp_path: Path) -> None:
    for path in train(src)[::15]:
        cut(path)
    mask = sorted((src / "query_seg").iterdir())[0]
    mask.write_bytes(b"")
    for out in ("new", "out"):
        if out == "out":
            with pytest.raises(ShardError, match="are kept"):
                convert_market1501(src, tmp_path / out, shard_bytes=SHARD_BYTES)
        report = convert_market1501(
            src, tmp_path / out, shard_bytes=SHARD_BYTES, on_bad_image="skip", on_bad_mask="full"
        )
    assert "shards were kept" in report.notes[0]
    assert tree(tmp_path / "out") == tree(tmp_path / "new") and not verify(tmp_path / "out")
    images = report.manifest.images
    assert images is not None and images.bad == len(train(src)[::15])
    assert report.manifest.masks.counts["unreadable"] == 1
    assert open_shards(tmp_path / "out").manifest == report.manifest


def test_shards_without_their_bad_images_are_not_kept_under_fail(src: Path, tmp_path: Path) -> None:
    cut(train(src)[0])

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_market1501(src, tmp_path / "out", shard_bytes=SHARD_BYTES, on_bad_image="skip", progress=stop)
    with pytest.raises(ShardError, match="truncated or broken"):
        convert_market1501(src, tmp_path / "out", shard_bytes=SHARD_BYTES)


def test_at_most_a_hundred_are_collected(tmp_path: Path) -> None:
    src = write_market(tmp_path / "market", identities=26)
    for path in train(src):
        cut(path)
    with pytest.raises(ShardError) as caught:
        convert_market1501(src, tmp_path / "out", shard_bytes=SHARD_BYTES)
    assert str(caught.value).startswith(f"at least {CAP} bad inputs")
    assert str(caught.value).count(".jpg") == CAP
    for path in train(src):
        path.unlink()
        path.write_bytes(b"")
    with pytest.raises(ShardError) as caught:
        convert_market1501(src, tmp_path / "out", shard_bytes=SHARD_BYTES)
    assert str(caught.value).count(".jpg") == CAP


def test_most_images_left_out_is_the_last_word(src: Path, tmp_path: Path) -> None:
    for path in train(src)[5:]:
        path.write_bytes(b"")
    status, output = run(
        "convert", "market1501", src, tmp_path / "out", "--on-bad-image", "skip", "--workers", 1
    )
    assert status == 0 and output.splitlines()[-1].startswith("MOST IMAGES WERE BAD AND LEFT OUT, 36 of 55")


def _mounted(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    out.mkdir()
    real = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(out) or real(path))


def _full(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    usage = shutil.disk_usage(out.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))


@pytest.mark.parametrize(
    ("prepare", "words"),
    [(_mounted, "is a mount point"), (_full, "MB of images, but 0 MB are free")],
)
def test_a_place_that_cannot_take_them_is_refused_before_the_first_byte(
    src: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[pytest.MonkeyPatch, Path], None],
    words: str,
) -> None:
    out = tmp_path / "out"
    prepare(monkeypatch, out)
    before = names(tmp_path)
    status, output = run("convert", "market1501", src, out, "--workers", 1)
    assert status == 2 and words in output and len(output.splitlines()) == 1
    assert names(tmp_path) == before


def test_other_policies_are_refused(src: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="image policy 'full': use one of fail, skip"):
        convert_market1501(src, tmp_path / "out", on_bad_image="full")  # type: ignore[arg-type]
