"""Servers that drip or never stop, or answer no http; poisoned caches; odd names on a terminal."""

import io
import zlib
from pathlib import Path

import pytest

from faulty_server import serving
from maskreid_dist.terminal import Terminal, say
from maskreid_shards import RemoteError, ShardError, open_shards
from maskreid_shards.stores import pace, remote
from odd_server import answering
from program import run

HEAD = b"HTTP/1.1 200 OK\r\n"
# What is sent once, and what is then sent for ever.
ANSWERS: dict[str, tuple[bytes, bytes]] = {
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "a header without end": (HEAD + b"X: ", b"x" * 10_000),
    "a body without end": (HEAD + b"\r\n", b"x" * 1_000_000),
    "chunks without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000),
    "a length of 5,000 digits": (HEAD + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n", b""),
    "a chunk of 5,000 digits": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 5_000 + b"\r\n", b""),
    "a redirect to half an address": (b"HTTP/1.1 302 x\r\nLocation: http://[::1\r\n\r\n", b""),
    "a redirect to a port that is none": (b"HTTP/1.1 302 x\r\nLocation: http://a:99999999/\r\n\r\n", b""),
    "a redirect to a file": (b"HTTP/1.1 302 x\r\nLocation: file:///etc/passwd\r\n\r\n", b""),
    "no http": (b"\x1b[2J\0\xff\r\n", b""),
    "a reason that drives the terminal": (b"HTTP/1.1 404 \x1b[2Jgone\x07\r\n\r\n", b""),
}


@pytest.fixture(autouse=True)
def direct_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "BACKOFF_S", 0.001)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr("maskreid_shards.reading.MANIFEST_BYTES", 3_000_000)
    monkeypatch.setattr("maskreid_shards.stores.http_store.MANIFEST_BYTES", 3_000_000)


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_odd_server_is_left_with_one_line(answer: str) -> None:
    once, again = ANSWERS[answer]
    with answering([once], again) as url, pytest.raises(ShardError) as caught:
        open_shards(url)
    said = str(caught.value)
    assert said.startswith(url) and "\n" not in said and said.isprintable()


def test_a_server_that_drips_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "GRACE_S", 0.0)
    with answering([b""], b"x") as url, pytest.raises(RemoteError, match=r"too slow|LineTooLong|without end"):
        open_shards(url)
    slow = pace.Pace()
    slow.started -= 10.0
    slow.received = 9 * pace.MIN_RATE
    with pytest.raises(TimeoutError, match="too slow"):
        slow.check()


def test_a_poisoned_cache_whose_crc32_fits_is_fetched_again(converted: Path, tmp_path: Path) -> None:
    with serving(converted) as server:
        sound = open_shards(server.url, cache=tmp_path / "cache").split("query")
        expected = sound.read(0)
        (path,) = (tmp_path / "cache").glob("*.tar")
        data = bytearray(path.read_bytes())
        row = sound.index[0]
        start, length = int(row["image_offset"]), int(row["image_length"])
        data[start : start + 4] = b"evil"
        # A crc32 is a number that four more bytes make what one likes; here the check itself is given up.
        assert zlib.crc32(bytes(data[start : start + length])) != int(row["image_crc32"])
        path.write_bytes(data)
        forged = open_shards(server.url, cache=tmp_path / "cache").split("query")
        index = forged.index.copy()
        index["image_crc32"][0] = zlib.crc32(bytes(data[start : start + length]))
        forged.__dict__["index"] = index
        with pytest.raises(ShardError, match="crc32"):  # the true bytes came, not the poisoned ones
            forged.read(0)
        assert (
            open_shards(server.url, cache=tmp_path / "cache").split("query").read(0).image == expected.image
        )


@pytest.mark.parametrize("name", ["[/old]", "[red]x", ":smile:", "a\x1b[2Jb", "a\rb", "a\u202eb", "a\x9b2Jb"])
def test_a_name_is_shown_and_not_obeyed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    terminal = Terminal()
    terminal.file = out
    terminal.print(f"warning: {name}", highlight=False)
    say(name)
    for shown in (out.getvalue().removeprefix("warning: "), capsys.readouterr().out):
        assert shown.removesuffix("\n").isprintable()
        assert not name.isprintable() or shown == f"{name}\n"


def test_errors_about_odd_names_are_printable(tmp_path: Path) -> None:
    status, output = run("recipe", tmp_path / "a\x1b[2Jb[/old].toml")
    assert status == 2 and output.count("\n") == 1 and "a\\x1b[2Jb[/old].toml" in output
