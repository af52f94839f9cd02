"""Whether results can be written where they should go, asked before long work."""

import os
from pathlib import Path

from maskreid_dist.errors import UserError


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Whether a file, or a folder of files, could be written here, with the folders
    that are missing. Makes nothing.

    For before long work, whose input may yet be refused. Raises UserError.
    """
    place = path if folder else path.parent
    if not folder and path.is_dir():
        raise UserError(f"{path}: is a folder; give a file's name")
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{path}: cannot be written ({place} is no folder); choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written (no permission in {place}); choose another place")
