"""Shards behind URLs, over a server that misbehaves: the same samples as from disk, or one clear line."""

import multiprocessing
import os
import pickle
import shutil
import socket
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from faulty_server import FaultyServer, serving
from maskreid_shards import RawPair, RemoteError, ShardError, Split, open_shards, verify, verify_url
from maskreid_shards.stores import http_store, remote
from program import run


@pytest.fixture(autouse=True)
def direct_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "BACKOFF_S", 0.001)
    monkeypatch.setattr(http_store, "TIMEOUT_S", None)  # the server always answers, on a busy machine late


@pytest.fixture
def server(converted: Path, tmp_path: Path) -> Iterator[FaultyServer]:
    shutil.copytree(converted, tmp_path / "served")
    with serving(tmp_path / "served") as running:
        yield running


def contents(pairs: list[RawPair]) -> list[tuple[object, ...]]:
    """Everything but the name of the shard, which is a URL here and a path there."""
    return [(p.key, p.pid, p.camid, p.image, p.mask) for p in pairs]


def expected(folder: Path, split: str, numbers: Iterable[int] | None = None) -> list[tuple[object, ...]]:
    local = open_shards(folder).split(split)
    return contents(local.read_many(range(len(local)) if numbers is None else numbers))


def whole(split: Split) -> list[tuple[object, ...]]:
    """Sample by sample, so that every sample is a request of its own."""
    return contents([split.read(number) for number in range(len(split))])


@pytest.mark.parametrize("name", ["train", "query", "gallery"])
def test_http_gives_what_the_folder_gives(server: FaultyServer, converted: Path, name: str) -> None:
    split = open_shards(server.url + "/").split(name)
    assert whole(split) == expected(converted, name)
    assert server.connections == 1  # kept open
    numbers = np.random.default_rng(0).integers(0, len(split), 40)
    assert contents(split.read_many(numbers)) == expected(converted, name, numbers)
    local = open_shards(converted).split(name)
    assert split.fingerprint == local.fingerprint and np.array_equal(split.index, local.index)
    before = len(server.requests)
    split.read_many(split.images_of(int(split.identities[-1])))
    assert len(server.requests) == before + 1  # neighbours share one request
    assert all(asked for path, asked in server.requests if path.endswith(".tar"))


@pytest.mark.parametrize("fault", ["drop", "cut", "500", "503", "429", "ignore", "flip", "shift"])
def test_faults_that_pass_change_nothing(server: FaultyServer, converted: Path, fault: str) -> None:
    server.fault = lambda path, number: fault if number % 2 == 0 else "ok"
    split = open_shards(server.url).split("train")
    assert whole(split) == expected(converted, "train")


def test_a_mixture_of_faults(server: FaultyServer, converted: Path) -> None:
    rng = np.random.default_rng(3)
    faults = ["drop", "cut", "500", "ignore", "shift"]

    def fault(path: str, number: int) -> str:
        return faults[rng.integers(len(faults))] if rng.random() < 0.3 else "ok"

    server.fault = fault
    split = open_shards(server.url).split("gallery")
    for _ in range(3):
        assert whole(split) == expected(converted, "gallery")


@pytest.mark.parametrize(
    ("fault", "word", "requests"),
    [
        ("drop", "RemoteDisconnected", remote.ATTEMPTS),
        ("500", "HTTP 500", remote.ATTEMPTS),
        ("shift", "another range", remote.ATTEMPTS),
        ("403", "HTTP 403", 1),
        ("404", "HTTP 404", 1),
    ],
)
def test_faults_that_stay_are_one_line(server: FaultyServer, fault: str, word: str, requests: int) -> None:
    split = open_shards(server.url).split("train")
    row = split.index[4]
    name = split.entry.shards[int(row["shard"])].name
    server.fault = lambda path, number: fault
    server.counts.clear()
    with pytest.raises(RemoteError) as caught:
        split.read(4)
    message = str(caught.value)
    for part in (
        f"{server.url}/{name}",
        row["key"].decode(),
        f"offset {row['image_offset']}",
        word,
        "attempt",
    ):
        assert part in message
    assert "\n" not in message
    # One more where the kept connection was dropped: that may be the server's idle timeout.
    assert server.counts[f"/{name}"] - requests in ((0, 1) if fault == "drop" else (0,))


def test_a_cut_read_goes_on_where_it_broke_off(server: FaultyServer, converted: Path) -> None:
    server.fault = lambda path, number: "cut" if path.endswith(".tar") and number < 4 else "ok"
    split = open_shards(server.url).split("query")
    assert contents([split.read(0)]) == expected(converted, "query", [0])
    starts = [
        int(str(asked).split("=")[1].split("-")[0])
        for path, asked in server.requests
        if path.endswith(".tar")
    ]
    assert len(starts) == remote.ATTEMPTS and starts == sorted(set(starts))


def test_wrong_bytes_that_stay_are_named(server: FaultyServer) -> None:
    split = open_shards(server.url).split("train")
    key = split.keys[2].decode()
    server.fault = lambda path, number: "flip" if path.endswith(".tar") else "ok"
    with pytest.raises(ShardError, match=rf"^{server.url}/train/0.*{key}: the .* does not fit its crc32"):
        split.read(2)
    server.fault = lambda path, number: "flip" if path.endswith(".npy") else "ok"
    with pytest.raises(ShardError, match=rf"^{server.url}/index/train.npy: the bytes do not fit"):
        _ = open_shards(server.url).split("train").index
    server.fault = lambda path, number: "flip"
    with pytest.raises(ShardError, match=rf"^{server.url}/manifest.json: "):
        open_shards(server.url)


def test_files_of_another_size_or_that_are_missing(server: FaultyServer) -> None:
    split = open_shards(server.url).split("query")
    path = server.folder / "query" / "000000.tar"
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(RemoteError, match=r"query/000000\.tar.*the manifest says"):
        split.read(0)
    path.unlink()
    with pytest.raises(RemoteError, match=r"query/000000\.tar.*HTTP 404"):
        split.read(0)
    (server.folder / "manifest.json").unlink()
    with pytest.raises(RemoteError, match=r"manifest\.json.*HTTP 404"):
        open_shards(server.url)
    with pytest.raises(ShardError, match="usable URL"):
        open_shards("http:///nothing")
    with socket.socket() as silent:  # holds a port, and does not listen
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(RemoteError, match=rf":{port}/manifest\.json.*Refused.*5 attempts"):
            open_shards(f"http://127.0.0.1:{port}")


def test_secrets_go_to_the_server_and_into_no_message(server: FaultyServer, tmp_path: Path) -> None:
    url = f"http://me:s3cret@127.0.0.1:{server.port}?signature=t0ken"
    shards = open_shards(url, cache=tmp_path / "cache")
    split = shards.split("query")
    assert split.read(0).key
    assert all(path.endswith("?signature=t0ken") for path, _ in server.requests)
    assert server.authorizations == {"Basic bWU6czNjcmV0"}
    said = [split.read(0).shard, shards.location, repr(split)]
    server.fault = lambda path, number: "500"
    for attempt in (lambda: open_shards(url), lambda: open_shards(url[:-6] + "\n")):
        with pytest.raises(ShardError) as caught:
            attempt()
        said.append(str(caught.value))
    assert not any("s3cret" in text or "t0ken" in text for text in said)


def test_workers_open_connections_of_their_own(server: FaultyServer, converted: Path) -> None:
    split = open_shards(server.url).split("train")
    assert contents([split.read(0)]) == expected(converted, "train", [0])
    data = pickle.dumps(split)
    assert len(data) < 4000
    assert whole(pickle.loads(data)) == expected(converted, "train")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        both = [*pool.map(whole, [split] * 2), whole(split)]
    assert both == [expected(converted, "train")] * 3


# The cache.


def test_the_cache_fetches_a_shard_once(server: FaultyServer, converted: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        for name in ("train", "query", "gallery"):  # each has a 000000.tar
            split = open_shards(server.url, cache=cache).split(name)
            assert whole(split) == expected(converted, name)
    tars = {path: count for path, count in server.counts.items() if path.endswith(".tar")}
    assert set(tars.values()) == {1}
    assert len(list(cache.glob("*.tar"))) == len(tars) and not list(cache.glob("*.partial"))


@pytest.mark.parametrize("fault", ["drop", "cut", "500", "ignore", "flip"])
def test_the_cache_survives_faults(server: FaultyServer, converted: Path, tmp_path: Path, fault: str) -> None:
    server.fault = lambda path, number: fault if number == 0 else "ok"
    split = open_shards(server.url, cache=tmp_path / "cache").split("train")
    assert whole(split) == expected(converted, "train")


def always(fault: str, path: str, number: int) -> str:
    return fault


def test_a_download_that_stays_wrong_leaves_nothing(server: FaultyServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    split = open_shards(server.url, cache=cache).split("train")
    assert len(split.index)
    for fault, word in (("flip", "sha256"), ("500", "HTTP 500"), ("403", "HTTP 403")):
        server.fault = partial(always, fault)
        with pytest.raises(RemoteError, match=rf"^{server.url}/train/0.*{word}"):
            split.read(0)
        assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_cache_file_is_fetched_again(
    server: FaultyServer, converted: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    first = open_shards(server.url, cache=cache).split("query")
    assert whole(first) == expected(converted, "query")
    (path,) = cache.glob("*.tar")
    sound = path.read_bytes()
    row = first.index[1]
    if damage == "flip":
        data = bytearray(sound)
        data[int(row["mask_offset"]) + 9] ^= 64
        path.write_bytes(data)
    elif damage == "remove":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "empty" else int(row["image_offset"]) + 5)
    # One reader has the damaged file open, the other opens it now.
    for split in (first, open_shards(server.url, cache=cache).split("query")):
        assert whole(split) == expected(converted, "query")
    assert path.read_bytes() == sound
    assert server.counts["/query/000000.tar"] == 2
    if damage == "flip":
        assert f"{path}: damaged, fetching" in caplog.text


def read_through_cache(url: str, cache: Path) -> list[tuple[object, ...]]:
    return whole(open_shards(url, cache=cache).split("train"))


def test_processes_share_the_cache(server: FaultyServer, converted: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "x").mkdir(parents=True)
    with multiprocessing.get_context("fork").Pool(6) as pool:
        found = pool.starmap(read_through_cache, [(server.url, cache)] * 6)
    assert found == [expected(converted, "train")] * 6
    assert {count for path, count in server.counts.items() if path.endswith(".tar")} == {1}


def test_the_cache_keeps_its_limit(server: FaultyServer, converted: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    entries = open_shards(converted).manifest.splits["gallery"].shards
    assert len(entries) > 1
    limit = max(entry.bytes for entry in entries)
    split = open_shards(server.url, cache=cache, cache_bytes=limit).split("gallery")
    for _ in range(2):
        assert whole(pickle.loads(pickle.dumps(split))) == expected(converted, "gallery")
        assert 0 < sum(path.stat().st_size for path in cache.glob("*.tar")) <= limit


def test_a_cache_that_cannot_be(server: FaultyServer, converted: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="no place for a cache"):
        open_shards(server.url, cache=tmp_path / "file" / "cache")
    with pytest.raises(ShardError, match="behind a URL"):
        open_shards(converted, cache=tmp_path / "cache")


# fsspec.


def to_memory(folder: Path, root: str) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe_file(f"/{root}/{path.relative_to(folder)}", path.read_bytes())


def test_fsspec_gives_what_the_folder_gives(converted: Path, tmp_path: Path) -> None:
    to_memory(converted, "same")
    for cache in (None, tmp_path / "cache"):
        split = open_shards("memory://same", cache=cache).split("train")
        assert whole(split) == expected(converted, "train")
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.map(whole, [split]) == [expected(converted, "train")]
    split = open_shards(f"local://{converted}").split("query")
    assert whole(split) == expected(converted, "query")


def test_fsspec_failures_are_one_line(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    with pytest.raises(ShardError, match=r"^nonsense://x: Protocol not known"):
        open_shards("nonsense://x")
    with pytest.raises(RemoteError, match=r"^memory://nowhere/manifest\.json.*FileNotFound"):
        open_shards("memory://nowhere")
    to_memory(converted, "flaky")
    split = open_shards("memory://flaky").split("train")
    assert len(split.index)
    files = fsspec.filesystem("memory")
    cat_file = type(files).cat_file
    calls = []

    def flaky(self: object, path: str, start: int | None = None, end: int | None = None) -> bytes:
        calls.append(path)
        if len(calls) % 3:
            raise TimeoutError(f"no answer\nfrom https://me:s3cret@host{path}?token=x")
        found: bytes = cat_file(self, path, start, end)
        return found

    monkeypatch.setattr(type(files), "cat_file", flaky)
    assert whole(split) == expected(converted, "train")
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    calls.clear()
    with pytest.raises(RemoteError, match=r"^memory://flaky/train/0.*no answer from.*2 attempts") as caught:
        split.read(0)
    assert "s3cret" not in str(caught.value) and "token" not in str(caught.value)
    files.rm("/flaky", recursive=True)


def test_verify_of_a_url(server: FaultyServer, converted: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify_url(server.url, progress=lambda done, total: seen.append((done, total))) == []
    assert verify_url(server.url, quick=True) == [] and seen[-1][0] == seen[-1][1] > 0
    shard = next((tmp_path / "served" / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    index = tmp_path / "served" / "index" / "query.npy"
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    found = verify_url(server.url)
    assert [(p.shard, p.key, p.kind) for p in found] == [
        (p.shard, p.key, p.kind) for p in verify(tmp_path / "served")
    ]
    assert {"shard-sha256", "index-sha256"} <= {problem.kind for problem in found}
    assert {problem.kind for problem in verify_url(server.url, quick=True)} >= {"index-sha256"}
    shard.write_bytes(data[:-512])
    (kind,) = {p.kind for p in verify_url(server.url, quick=True) if p.shard.startswith("train")}
    assert kind == "shard-missing"
    with pytest.raises(ShardError):
        verify_url(server.url + "/nowhere")


def test_the_commands_take_urls(server: FaultyServer, converted: Path) -> None:
    for command in ("verify", "stats", "plan"):
        options = ("--identities", 2, "--images", 2) if command != "verify" else ("--quick",)
        status, output = run(command, server.url, *options)
        _, local = run(command, converted, *options)
        assert status == 0 and output.replace(server.url, "X") == local.replace(str(converted), "X")


def test_quick_verify_reads_no_shard(converted: Path, tmp_path: Path) -> None:
    shutil.copytree(converted, tmp_path / "x")
    first, second, *_ = sorted((tmp_path / "x").glob("*/*.tar"))
    first.write_bytes(bytes(first.stat().st_size))
    assert verify(tmp_path / "x", quick=True) == []
    second.write_bytes(second.read_bytes() + b"x")
    assert [(p.kind, p.shard) for p in verify(tmp_path / "x", quick=True)] == [
        ("shard-size", str(second.relative_to(tmp_path / "x")))
    ]
