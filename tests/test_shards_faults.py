"""A thousand damaged or hostile shard folders: `verify` names each fault, reading never returns anything
else.

"Damaged" cases change bytes after the conversion. "Forged" ones come with an index and a manifest that vouch
for them, as a hostile maker of shards would write them.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from maskreid_shards import KINDS, Layout, ShardError, Source, convert, decode_pair, open_shards, verify
from shard_damages import DAMAGES, OTHER_DAMAGES, SHARD, Base, Expected, Samples, picture
from shard_forgeries import CHANGES_WHAT_IS_STORED, FORGERIES, REFUSED_BY_DECODER, untar

CASES = 1000


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    generator = np.random.default_rng(0)
    sources = []
    for pid in range(1, 5):
        for number in range(2):
            path, mask = folder / f"{pid}_{number}.jpg", folder / f"{pid}_{number}.png"
            path.write_bytes(picture(generator, "JPEG"))
            mask.write_bytes(picture(generator, "PNG"))
            sources.append(
                Source(path, mask, pid, number + 1, "train", f"p{pid:08d}_{number:05d}", path.name)
            )
    convert(Layout("test", {"train": tuple(sources)}), folder / "out", dataset="test", shard_bytes=16_000)
    assert len(open_shards(folder / "out").split("train").urls()) == 2
    members, headers = untar((folder / "out" / SHARD).read_bytes())
    assert len(members) >= 12
    return Base(folder / "out", members, headers, read_all(folder / "out"))


def read_all(folder: Path) -> Samples:
    """Every sample through the reading path, decoded too. Raises ShardError."""
    opened = open_shards(folder)
    samples = {}
    for name in opened.splits:
        for raw in opened.split(name).read_many(range(len(opened.split(name)))):
            decode_pair(raw)
            samples[raw.key] = (raw.image, raw.mask)
    return samples


def faults() -> Iterator[Callable[[Base, Path, np.random.Generator], Expected]]:
    """Every fault in turn, the commonest more often."""
    while True:
        for fault, times in DAMAGES.items():
            yield from [fault] * times
        yield from OTHER_DAMAGES
        yield from FORGERIES


def test_a_thousand_faults(base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    seen: dict[str, int] = {}
    for number, fault in zip(range(CASES), faults(), strict=False):
        shutil.copytree(base.folder, folder)
        rng = np.random.default_rng(number)
        expected = fault(base, folder, rng)
        what = f"case {number}, {fault.__name__}: {expected}"
        problems = verify(folder)
        found = [
            problem
            for problem in problems
            if problem.kind == expected.kind
            and problem.shard == expected.shard
            and expected.key in (None, problem.key)
            and expected.offset in (None, problem.offset)
        ]
        assert found, f"{what}\n" + "\n".join(problem.message for problem in problems)
        for problem in problems:
            seen[problem.kind] = seen.get(problem.kind, 0) + 1
            assert "\n" not in problem.message
        try:
            samples = read_all(folder)
        except ShardError as error:
            assert "\n" not in str(error), what
        else:
            assert fault not in REFUSED_BY_DECODER, what
            if fault not in CHANGES_WHAT_IS_STORED:
                assert samples == base.samples, what
        assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"], what
        shutil.rmtree(folder)
    assert set(seen) <= set(KINDS)
    assert not set(KINDS) - set(seen) - {"index-disagrees", "index-order", "shard-sha256"}
