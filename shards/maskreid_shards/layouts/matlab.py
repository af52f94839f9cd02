"""MATLAB files: those of version 7.3 are HDF5 (h5py), older ones are read by scipy. Both packages are
optional."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ShardError
from .images import need_file

ARRAY_BYTES = 1 << 30
INSTALL = "install it with `pip install 'maskreid-shards[mat]'`"


class OneFile:
    """What an HDF5 file holds itself, by name or reference: no link, external storage or virtual data set,
    which would read other files of the user, and no array larger than ARRAY_BYTES, which a few bytes can
    declare."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getitem__(self, where: Any) -> Any:
        """A data set. Raises ValueError for any other thing."""
        import h5py

        if isinstance(where, str) and not isinstance(self._file.get(where, getlink=True), h5py.HardLink):
            raise ValueError(f"{where} is a link")
        found = self._file[where]
        if not isinstance(found, h5py.Dataset):
            raise ValueError(f"{found.name} is no array")
        if found.is_virtual or found.external:
            raise ValueError(f"{found.name} is kept in other files, which are not read")
        if found.size is None or found.size * found.dtype.itemsize > ARRAY_BYTES:
            raise ValueError(f"{found.name} is of {found.shape}, more than {ARRAY_BYTES} bytes")
        return found


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """A v7.3 file. Raises ShardError: missing, no h5py, not HDF5, an odd structure inside, or one that
    reaches into other files."""
    need_file(path)
    try:
        import h5py
    except ImportError:
        raise ShardError(f"{path}: reading it needs the package h5py; {INSTALL}") from None
    try:
        with h5py.File(path, "r") as file:
            yield OneFile(file)
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
