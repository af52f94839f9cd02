"""Odd inputs by the thousand for everything that reads what a user was given: `make fuzz`.

Each input is made of a sound one by a few random changes, all from one seed: bits, pieces of text, values of
a JSON tree, fields of an index. It must be taken, or refused by an error of the project's own on one
printable line; a traceback, a hang (HANG_S) or more memory than MEMORY is a finding, kept in a folder with
its seed. The same seed makes the same input: `python tests/fuzz.py --door recipe --seed 17 --count 1`.
"""

import argparse
import collections
import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from maskreid_dist.errors import UserError
from maskreid_dist.model.checkpoint import read_checkpoint
from maskreid_dist.recipe import load_recipe
from maskreid_shards import ShardError, open_shards, scan_csv, verify
from maskreid_shards.shown import in_a_line
from maskreid_shards.stores import pace, remote
from odd_server import answering

ROOT = Path(__file__).parents[1]
HANG_S = 120
LONG = 4_000  # characters of a message
MEMORY = 512 << 20  # more than any of these inputs may cost
TEXTS = (
    b"", b"\0", b"\xff\xfe", b"\x1b[2J", b"\r\n", b'"', b"'", b",", b";", b"\t", b"[", b"]", b"{", b"}", b"=",
    b"-1", b"0", b"9" * 400, b"9" * 5_000, b"1e999", b"NaN", b"Infinity", b"null", b"true", b"[" * 3_000,
    b'{"a":' * 3_000, b"../../etc/passwd", b"/dev/zero", b"/dev/stdin", b"file:///etc/passwd", b"[/red]",
    b"%s%n", b"a" * 70_000, b"\xc3\xa9" * 300, b"\xed\xa0\x80", b"__class__",
    b"18446744073709551616", b"-9223372036854775809", b"0x" + b"f" * 99,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, float("inf"), float("nan"),
    "", "\0", "\x1b[2J", "a" * 70_000, "../..", "/dev/zero", "[/red]", "\ud800", [], {}, [[]], [None],
    {"": None}, [0] * 3_000,
)  # fmt: skip
HEADERS = (
    b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999999", b"Content-Length: x",
    b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", b"Content-Range: bytes 0-4/5",
    b"Content-Range: bytes 9-1/*", b"Location: /a", b"Location: file:///etc/passwd", b"Location: http://[::1",
    b"ETag: \xff\xfe", b"X: " + b"x" * 70_000, b"\x1b[2J: a", b": ", b"Connection: close",
    b"Accept-Ranges: none",
)  # fmt: skip
STATUSES = (
    b"HTTP/1.1 200 OK", b"HTTP/1.1 206 Partial Content", b"HTTP/1.1 301 Moved", b"HTTP/1.1 302 x",
    b"HTTP/1.1 404 \x1b[2Jgone", b"HTTP/1.1 416 x", b"HTTP/1.1 500 x", b"HTTP/1.1 999 x", b"HTTP/9.9 200 OK",
    b"HTTP/1.1 2x0 OK", b"HTTP/1.1", b"", b"\0\xff", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK",
)  # fmt: skip


def changed(data: bytes, random: random.Random) -> bytes:
    """A few changes to bytes."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at = random.randrange(len(out) + 1)
        match random.randrange(6):
            case 0 if out:
                out[at - 1] ^= 1 << random.randrange(8)
            case 1 if out:
                out[at - 1] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                out[at:at] = random.choice(TEXTS)
            case 3:
                del out[at : at + random.choice((1, 4, 64, 4096))]
            case 4:
                out[at : at + 40] = random.choice(TEXTS)
            case _:
                out[at:at] = out[at : at + random.choice((4, 64, 1024))]
    return bytes(out)


def changed_tree(tree: Any, random: random.Random) -> Any:
    """A few changes to a tree of JSON, in place; the tree, or what stands in its place."""
    for _ in range(random.choice((1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        stack = [tree]
        while stack:
            node = stack.pop()
            inside = (
                node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            )
            for key, value in inside:
                places.append((node, key))
                stack.append(value)
        if not places:
            return copy.deepcopy(random.choice(VALUES))
        node, key = random.choice(places)
        match random.randrange(4):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[random.choice(("", "\0", "a" * 300, "format", "../a", key + "x"))] = node.pop(key)
            case _:
                node[key] = copy.deepcopy(
                    random.choice(VALUES)
                )  # one that is changed later is not the next one's
    return tree


def changed_json(data: bytes, random: random.Random) -> bytes:
    if random.random() < 0.3:
        return changed(data, random)
    with contextlib.suppress(ValueError):  # digits beyond Python's limit
        text = json.dumps(changed_tree(json.loads(data), random))
        return text.encode(errors="surrogatepass")
    return changed(data, random)


def changed_index(data: bytes, random: random.Random) -> bytes:
    """An index file: its bytes, or a sound file with odd numbers."""
    if random.random() < 0.4:
        return changed(data, random)
    rows = np.load(io.BytesIO(data), allow_pickle=False)
    for _ in range(random.choice((1, 3, 50))):
        name = random.choice(rows.dtype.names)
        field = rows.dtype[name]
        row = random.randrange(len(rows))
        if field.kind in "iu":
            limits = np.iinfo(field)
            rows[name][row] = random.choice((0, 1, int(limits.max), int(limits.min), random.randrange(1000)))
        else:
            rows[name][row] = random.choice((b"", b"\xff", b"../a", b"0001_c1s1_000001_00", b"a" * 999))
    if random.random() < 0.3:
        rows = rows[random.randrange(len(rows)) :]
    out = io.BytesIO()
    np.save(out, rows)
    return out.getvalue()


def changed_table(data: bytes, random: random.Random) -> bytes:
    """A CSV file: its bytes, or a sound file with odd cells."""
    if random.random() < 0.4:
        return changed(data, random)
    rows = [line.split(b",") for line in data.splitlines()]
    for _ in range(random.choice((1, 2, 6))):
        cells = random.choice(rows)
        cells[random.randrange(len(cells))] = random.choice(TEXTS)
    return b"\n".join(b",".join(cells) for cells in rows)


def answer(random: random.Random, body: bytes) -> bytes:
    """What an http server sends."""
    headers = random.sample(HEADERS, random.randrange(4))
    if random.random() < 0.5:
        headers.append(b"Content-Length: %d" % len(body))
    if random.random() < 0.5:
        body = changed_json(body, random)
    sent = b"\r\n".join([random.choice(STATUSES), *headers, b"", body])
    return changed(sent, random) if random.random() < 0.2 else sent


class Doors:
    """What reads outside input, by name: each makes an input, leaves it at `given`, and reads it."""

    def __init__(self, folder: Path, shards: Path, checkpoint: Path | None) -> None:
        self.folder, self.sound, self.checkpoint = folder, shards, checkpoint
        self.given = folder / "given"
        self.table = b"path,pid,camid,split\n" + b"".join(
            b"%d.png,%d,%d,%s\n" % (n, n // 4 + 1, n % 4 + 1, b"train" if n < 12 else b"gallery")
            for n in range(20)
        )
        self.doors: dict[str, Callable[[random.Random], None]] = {
            "manifest": self.manifest,
            "index": self.index,
            "shard": self.shard,
            "recipe": self.recipe,
            "table": self.read_table,
            "http": self.http,
        }
        if checkpoint:
            self.doors["checkpoint"] = self.checkpoint_manifest

    def manifest(self, random: random.Random) -> None:
        self._shards("manifest.json", changed_json, random)

    def index(self, random: random.Random) -> None:
        name = random.choice(sorted((self.sound / "index").iterdir())).relative_to(self.sound)
        self._shards(str(name), changed_index if name.suffix == ".npy" else changed_json, random)

    def shard(self, random: random.Random) -> None:
        name = random.choice(sorted(self.sound.glob("*/*.tar"))).relative_to(self.sound)
        self._shards(str(name), changed, random)

    def _shards(
        self, name: str, change: Callable[[bytes, random.Random], bytes], random: random.Random
    ) -> None:
        folder = self._copied(self.sound, name, change, random)
        for problem in verify(folder, workers=1):
            one_line(problem.message)
        shards = open_shards(folder)
        for split in shards.splits:
            opened = shards.split(split)
            for number in range(0, len(opened.index), max(len(opened.index) // 3, 1)):
                opened.read(number)

    def checkpoint_manifest(self, random: random.Random) -> None:
        assert self.checkpoint is not None
        read_checkpoint(self._copied(self.checkpoint, "manifest.json", changed_json, random))

    def recipe(self, random: random.Random) -> None:
        recipes = sorted((ROOT / "launch" / "recipes").glob("*.toml"))
        self.given.write_bytes(changed(random.choice(recipes).read_bytes(), random))
        load_recipe(self.given, [])

    def read_table(self, random: random.Random) -> None:
        self.given.write_bytes(changed_table(self.table, random))
        layout = scan_csv(self.given)
        for source in layout.sources():
            one_line(source.name)

    def http(self, random: random.Random) -> None:
        body = (self.sound / "manifest.json").read_bytes()
        answers = [answer(random, body) for _ in range(3)]
        self.given.write_bytes(b"\n----\n".join(answers))
        with answering(answers) as url:
            open_shards(url)

    def _copied(
        self, sound: Path, name: str, change: Callable[[bytes, random.Random], bytes], random: random.Random
    ) -> Path:
        """A folder whose files are the sound ones, but for one."""
        folder = self.folder / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder, copy_function=os.link)
        (folder / name).unlink()
        self.given.write_bytes(change((sound / name).read_bytes(), random))
        shutil.copyfile(self.given, folder / name)
        return folder


def one_line(text: str) -> None:
    """As the program prints it: control characters as escapes."""
    shown = in_a_line(text)
    if not shown.isprintable() or len(shown) > LONG:
        raise AssertionError(f"{len(shown)} characters, or not one printable line: {shown[:200]!r}")


class Hang(BaseException):
    """Raised in the middle of whatever takes too long."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """No bound where it is 0."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak() -> int:
    """Bytes of this process at most, since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def try_one(doors: Doors, door: str, seed: int, hang_s: float = 0) -> str:
    """ "taken" or "refused", or a finding: its last line. Of errors as the program's commands know them."""
    forget_peak()
    before = peak()
    try:
        with at_most(hang_s):
            doors.doors[door](random.Random(f"{door} {seed}"))
        found = "taken"
    except (UserError, ShardError) as error:
        found = "refused"
        try:
            one_line(str(error))
        except AssertionError as odd:
            found = str(odd)
    except OSError as error:
        found = "refused" if error.filename is not None else _last_line(error)
    except Hang:
        found = f"no end within {hang_s} s"
    except Exception as error:
        found = _last_line(error)
    if found in ("taken", "refused") and peak() - before > MEMORY:
        found = f"{(peak() - before) >> 20} MB of memory"
    return found


def _last_line(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]!r} at {frame.filename}:{frame.lineno}"


def quiet_and_quick() -> None:
    """A remote store that does not wait between its attempts, and gives a server up soon."""
    os.environ["no_proxy"] = "127.0.0.1"
    remote.BACKOFF_S, remote.ATTEMPTS = 0.001, 2
    pace.GRACE_S = 5.0


def sound_inputs(folder: Path) -> tuple[Path, Path]:
    """Small shards, and a checkpoint of two steps on them."""
    from market import write_market
    from maskreid_shards import convert_market1501
    from nodes import run_nodes, write_recipe

    convert_market1501(write_market(folder / "market"), folder / "shards", shard_bytes=30_000)
    (node,) = run_nodes([[write_recipe(folder), "--runs", folder / "runs"]])
    if node.status:
        sys.exit(f"error: the training of the sound checkpoint failed: {node.output}")
    return folder / "shards", sorted((folder / "runs/tiny/checkpoints").glob("step_*"))[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--count", type=int, help="inputs of each door; default: as many as fit")
    parser.add_argument("--seed", type=int, default=0, help="of the first input; those after it count up")
    parser.add_argument("--door", action="append", help="default: all")
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzz"))
    chosen = parser.parse_args()
    quiet_and_quick()
    tally: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    end = time.monotonic() + 60 * chosen.minutes
    with tempfile.TemporaryDirectory() as name:
        doors = Doors(Path(name), *sound_inputs(Path(name)))
        names, seed = chosen.door or list(doors.doors), chosen.seed
        while time.monotonic() < end and (chosen.count is None or seed < chosen.seed + chosen.count):
            for door in names:
                found = try_one(doors, door, seed, HANG_S)
                sound = found in ("taken", "refused")
                tally[door][found if sound else "found"] += 1
                if not sound:
                    chosen.findings.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(doors.given, chosen.findings / f"{door}-{seed}")
                    print(f"{door} {seed}: {found}", flush=True)
            seed += 1
    for door, counts in tally.items():
        print(f"{door}: " + ", ".join(f"{counts[kind]} {kind}" for kind in ("taken", "refused", "found")))
    print(f"seeds {chosen.seed} to {seed - 1}")
    sys.exit(1 if any(counts["found"] for counts in tally.values()) else 0)


if __name__ == "__main__":
    main()
