"""LMDBs as LUPerson and LUPerson-NL are published: the same shards as from loose files."""

import pickle
from pathlib import Path

import pytest

from market import jpeg
from maskreid_shards import ShardError, convert, open_shards, verify
from maskreid_shards.layouts.lmdb import VIDEO, scan_lmdb
from program import run

lmdb = pytest.importorskip("lmdb")
NL = ["00001_0_3", "00001_7_1", "00001_7_2", "00002_7_9"]
UNLABELLED = ["00_01_0002_00000000", "00_01_0002_00000001", "00_02_0001_00000000"]


def written(folder: Path, keys: list[str]) -> Path:
    (folder / "lmdb").mkdir(parents=True)
    with lmdb.open(str(folder / "lmdb"), map_size=2**22) as environment, environment.begin(write=True) as txn:
        for number, key in enumerate(keys):
            txn.put(key.encode(), jpeg(number))
    (folder / "keys.pkl").write_bytes(pickle.dumps({"keys": keys}))
    return folder


@pytest.mark.parametrize("below", ["", "lmdb"])
@pytest.mark.parametrize("workers", [1, 2])
def test_luperson_nl(tmp_path: Path, below: str, workers: int) -> None:
    layout = scan_lmdb(written(tmp_path / "lupnl", NL) / below)
    report = convert(
        layout, tmp_path / "out", dataset="nl", on_bad_mask="full", shard_bytes=20_000, workers=workers
    )
    assert not verify(tmp_path / "out")
    train = open_shards(tmp_path / "out").split("train")
    pairs = {(pair.pid, pair.camid, pair.image) for pair in train.read_many(range(4))}
    assert pairs == {(1, 1, jpeg(0)), (2, 1, jpeg(1)), (2, 1, jpeg(2)), (2, 2, jpeg(3))}
    assert report.manifest.numbering == {"pid": {"0": 1, "7": 2}}


def test_luperson_has_no_identities_unless_one_says_what_stands_for_them(tmp_path: Path) -> None:
    src = written(tmp_path / "lup", UNLABELLED)
    with pytest.raises(ShardError, match=r"names no identity by .* where the video stands for the person"):
        scan_lmdb(src)
    options = ("--pattern", VIDEO, "--on-bad-mask", "full", "--workers", 1)
    status, output = run("convert", "lmdb", src, tmp_path / "out", *options)
    assert status == 0 and "train: 3 images, 2 identities" in output
    assert open_shards(tmp_path / "out").manifest.numbering == {"pid": {"00_01_0002": 1, "00_02_0001": 2}}


def test_bad_images_and_bad_environments_are_named(tmp_path: Path) -> None:
    src = written(tmp_path / "x", NL)
    with lmdb.open(str(src / "lmdb"), map_size=2**22) as environment, environment.begin(write=True) as txn:
        txn.put(b"00003_8_1", b"no picture")
        txn.put(b"00003_8_2", b"")
    with pytest.raises(ShardError, match=r"2 images cannot be used: .*00003_8_1 .*00003_8_2"):
        convert(scan_lmdb(src), tmp_path / "out", dataset="x", on_bad_mask="full")
    (tmp_path / "y").mkdir()
    with pytest.raises(ShardError, match=r"no data\.mdb in it"):
        scan_lmdb(tmp_path / "y")
    (tmp_path / "y" / "data.mdb").write_bytes(b"x" * 8192)
    with pytest.raises(ShardError, match="not a readable LMDB"):
        scan_lmdb(tmp_path / "y")
    with pytest.raises(ShardError, match="name a group pid"):
        scan_lmdb(src, pattern="(x)")
