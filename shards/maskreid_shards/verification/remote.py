"""Check shards behind a URL: each is fetched whole, checked, and removed again."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import ShardError
from ..manifest import MANIFEST, index_name
from ..reading import open_shards
from .folder import split_tasks
from .problems import Problem


def verify_url(
    url: str, *, quick: bool = False, progress: Callable[[int, int], None] | None = None
) -> list[Problem]:
    """Everything that is wrong with the shards at `url`, as `verify` finds it in a folder; other files there
    are not seen. One shard at a time lies on the local disk. `quick`: only the manifest and the indexes, and
    the first bytes of every shard, whose answer says its size.

    Raises ShardError: no manifest, or one that cannot be believed; the store cannot be reached.
    """
    opened = open_shards(url)
    store, manifest = opened.store, opened.manifest
    report = progress or (lambda done, total: None)
    problems: list[Problem] = []
    names = {MANIFEST: 0, **{index_name(split): 0 for split in manifest.splits}}
    names |= {shard.name: shard.bytes for entry in manifest.splits.values() for shard in entry.shards}
    total, done = sum(len(entry.shards) for entry in manifest.splits.values()), 0
    report(0, total)
    with tempfile.TemporaryDirectory(prefix="maskreid-verify-") as temporary:
        folder = Path(temporary)
        for split, entry in manifest.splits.items():
            index = folder / entry.index
            index.parent.mkdir(exist_ok=True)
            (folder / split).mkdir(exist_ok=True)
            try:
                index.write_bytes(store.read(entry.index, entry.index_bytes))
            except ShardError as error:
                problems.append(Problem(entry.index, None, None, "index-missing", str(error)))
                continue
            found, tasks = split_tasks(folder, split, entry, entry.shards, names)
            problems += found
            for shard, task in zip(entry.shards, tasks, strict=True):
                path = folder / shard.name
                try:
                    if quick:
                        store.fetch(shard, 0, 1, shard.name)
                    else:
                        path.write_bytes(store.read(shard.name, shard.bytes))
                        problems += task.run(folder)
                except ShardError as error:
                    problems.append(Problem(shard.name, None, None, "shard-missing", str(error)))
                path.unlink(missing_ok=True)
                done += 1
                report(done, total)
    return problems
