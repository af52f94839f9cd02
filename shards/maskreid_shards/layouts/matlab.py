"""MATLAB files: those of version 7.3 are HDF5 (h5py), older ones are read by scipy. Both packages are
optional."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ShardError
from .images import need_file

INSTALL = "install it with `pip install 'maskreid-shards[mat]'`"


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """A v7.3 file, as an h5py.File. Raises ShardError: missing, no h5py, not HDF5, or an odd structure
    inside."""
    need_file(path)
    try:
        import h5py
    except ImportError:
        raise ShardError(f"{path}: reading it needs the package h5py; {INSTALL}") from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ShardError(f"{path}: not the MATLAB file (v7.3) expected ({reason}); fetch it again") from error


def load_mat(path: Path, *keys: str) -> list[Any]:
    """The variables `keys` of a file older than v7.3, as arrays. Raises ShardError as `open_hdf5` does."""
    need_file(path)
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ShardError(f"{path}: reading it needs the package scipy; {INSTALL}") from None
    try:
        content = loadmat(path)
    except Exception as error:  # of any type, for arbitrary bytes: each becomes one line
        reason = " ".join(str(error).split())
        raise ShardError(f"{path}: not a readable MATLAB file ({reason}); fetch it again") from error
    for key in keys:
        if key not in content:
            raise ShardError(f"{path}: holds no variable {key}; is it the right file?")
    return [content[key] for key in keys]
