"""One training in a run directory at a time."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from maskreid_dist.model.checkpoint import finished_checkpoints
from maskreid_dist.run_directory import CHECKPOINTS, LOCK
from maskreid_dist.training.meeting import Meeting


def hold_run_directory(meeting: Meeting, run: Path, resume: bool) -> TextIO | None:
    """Make and lock the run directory, by rank 0; it is held while the returned file is open. All ranks take part.

    Raises UserError on every rank: it cannot be written, another training holds it, or it holds checkpoints and
    this is no resume.
    """
    lock: TextIO | str | None = None
    if meeting.is_first:
        if not resume and finished_checkpoints(run / CHECKPOINTS):
            lock = "holds checkpoints; continue with --resume, or choose another name"
        else:
            lock = lock_run_directory(run)
    meeting.refuse(f"{run}: {lock}" if isinstance(lock, str) else None)
    return None if isinstance(lock, str) else lock


def lock_run_directory(run: Path) -> TextIO | str:
    """Lock the run directory while the returned file is open, or say who holds it.

    Two trainings in one directory would spoil each other's checkpoints.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK).open("a+")
    except OSError as error:
        return f"cannot be written ({error.strerror}); choose another --runs"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        return f"process {file.read().strip() or 'unknown'} is training here; wait for it or stop it"
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
