"""The run directory as the ranks see it: who writes there, that the others read the same one, and that no
other training does.

One rank keeps the directory: rank 0, or with `run.local_checkpoints` the first rank of each machine, on a
disk of its own. Every rank must see what the keeper of its directory wrote there.
"""

import fcntl
import itertools
import os
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from maskreid_dist.errors import UserError
from maskreid_dist.model.checkpoint import finished_checkpoints
from maskreid_dist.run_directory import CHECKPOINTS, LOCK, STOP
from maskreid_dist.terminal import say
from maskreid_dist.training.meeting import Meeting
from maskreid_shards.atomic import open_to_append

NONCE = ".seen_"
LAUNCHED = "MASKREID_LAUNCHED"  # by `maskreid demo`, which passes stop requests on from then on
LOOK_S = 0.1  # longer than `maskreid runs` holds the lock to see whether anybody does
LEFT_S = 40.0  # for a training whose launcher was killed to save and leave: longer than it may take
VISIBLE_S = 5.0  # for a network file system to show a file that another machine wrote


@dataclass(frozen=True)
class RunFolder:
    """The run directory of this rank. `keepers`: for each rank, the rank that keeps the directory it sees."""

    path: Path
    rank: int
    keepers: tuple[int, ...]
    lock: TextIO | None

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def is_keeper(self) -> bool:
        return self.keepers[self.rank] == self.rank

    @property
    def ranks(self) -> list[int]:
        """The ranks whose pieces of a checkpoint belong into this directory."""
        return [rank for rank, keeper in enumerate(self.keepers) if keeper == self.keepers[self.rank]]


def hold_run_folder(meeting: Meeting, path: Path, resume: bool, local: bool) -> RunFolder:
    """Make and lock the run directory, by its keeper, and see that every rank has its keeper's before it. All
    ranks take part.

    local: each machine has its own. Raises UserError on every rank: a directory cannot be written, another
    training holds it, it holds checkpoints and this is no resume, or the ranks do not see the same one.
    """
    path = path.absolute()
    keeps = meeting.place.local_rank == 0 if local else meeting.is_first
    lock: TextIO | str | None = None
    if keeps:
        if (path / CHECKPOINTS).is_symlink():
            lock = f"{CHECKPOINTS} is a link, and nothing is saved or deleted through links; give its --runs"
        elif not resume and finished_checkpoints(path / CHECKPOINTS):
            lock = "holds checkpoints; continue with --resume, or choose another name"
        else:
            lock = lock_run_directory(path)
    meeting.refuse(f"{path}: {lock}" if isinstance(lock, str) else None)
    assert not isinstance(lock, str)
    if meeting.is_first:
        remove_stale_stop(path / STOP, process_start())
        if resume and not finished_checkpoints(path / CHECKPOINTS):
            say(f"{path}: holds no checkpoint, so --resume starts from the beginning", flush=True)
    keepers = _keepers(meeting, path, local, keeps)
    return RunFolder(path, meeting.place.rank, keepers, lock)


def lock_run_directory(run: Path) -> TextIO | str:
    """Lock the run directory while the returned file is open, or say who holds it.

    Two trainings in one directory would spoil each other's checkpoints. One whose launcher was killed may
    still save: it is waited for.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(open_to_append(run / LOCK), "a+")
    except OSError as error:
        return f"cannot be written ({error.strerror}); choose another --runs"
    deadline = time.monotonic() + LEFT_S
    for look in itertools.count():
        if _locked(file):
            break
        file.seek(0)
        holder = file.read().strip() or "unknown"
        if look and time.monotonic() > deadline:
            return f"process {holder} is training here; wait for it or stop it"
        if look == 1:
            say(f"{run}: process {holder} is training here; waiting {LEFT_S:g} s for it", flush=True)
        time.sleep(LOOK_S)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def process_start() -> float:
    """When this process began, or the `maskreid` that launched it, in seconds since 1970."""
    import psutil  # comes with deepspeed

    started: float = psutil.Process().create_time()
    return min(started, float(os.environ.get(LAUNCHED, "inf")))


def remove_stale_stop(stop: Path, started: float) -> None:
    """Remove a stop request that is older than the training, which it was not meant for, and say so."""
    try:
        asked = stop.stat().st_mtime
    except FileNotFoundError:
        return
    if asked < started:
        when = datetime.fromtimestamp(asked).strftime("%Y-%m-%d %H:%M:%S")
        say(f"{stop}: removed, it is of {when}, before this training was started", flush=True)
        stop.unlink(missing_ok=True)


def _keepers(meeting: Meeting, path: Path, local: bool, keeps: bool) -> tuple[int, ...]:
    """The keeper of each rank's directory, told by a file that each keeper writes. All ranks take part."""
    # A name of its own: no file system has cached that it is not there.
    nonce = NONCE + meeting.from_first(uuid.uuid4().hex)
    own = path / f"{nonce}_{meeting.place.rank}"
    problem = None
    if keeps:
        try:
            for left in path.glob(f"{NONCE}*"):
                if not left.name.startswith(nonce):
                    left.unlink(missing_ok=True)
            own.touch()
        except OSError as error:
            problem = f"{path}: cannot be written ({error.strerror}); choose another --runs"
    meeting.refuse(problem)
    seen = meeting.gather([str(path), *_seen(path, nonce)])
    own.unlink(missing_ok=True)
    return agree_on_keepers(meeting, seen, local)


def _seen(path: Path, nonce: str) -> list[str]:
    """The ranks whose files this rank sees, as text; waits for the first."""
    deadline = time.monotonic() + VISIBLE_S
    while True:
        ranks = [file.name.removeprefix(f"{nonce}_") for file in path.glob(f"{nonce}_*")]
        if ranks or time.monotonic() > deadline:
            return sorted(ranks, key=int)
        time.sleep(0.1)


def agree_on_keepers(meeting: Meeting, seen: list[list[str]], local: bool) -> tuple[int, ...]:
    """`seen`: for each rank, its run directory and the keepers that it sees there. Raises UserError, the same
    on every rank."""
    problems: list[str | None] = []
    for path, *keepers in seen:
        problem = None
        if not keepers and local:
            problem = (
                f"{path}: local rank 0 of this machine writes elsewhere; give all ranks of a machine the "
                "same --runs"
            )
        elif not keepers:
            problem = (
                f"{path}: is not the run directory that rank 0 writes; the ranks need one that all machines "
                "share (--runs), or run.local_checkpoints = true"
            )
        elif len(keepers) > 1:
            problem = (
                f"{path}: local rank 0 of several machines writes here (ranks {', '.join(keepers)}); it is "
                "shared: leave out run.local_checkpoints"
            )
        problems.append(problem)
    lines = meeting.lines(problems)
    if lines:
        raise UserError("\n".join(lines))
    return tuple(int(keepers[0]) for _, *keepers in seen)
