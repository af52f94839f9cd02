"""One training in a run directory at a time."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from maskreid_dist.run_directory import LOCK


def lock_run_directory(run: Path) -> TextIO | str:
    """Lock the run directory while the returned file is open, or say who holds it.

    Two trainings in one directory would spoil each other's checkpoints.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK).open("a+")
    except OSError as error:  # returned, not raised: the other ranks wait for the answer
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
