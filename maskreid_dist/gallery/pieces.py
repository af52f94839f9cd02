"""Pieces of a gallery in the making: the rows of one batch each, in a file that appears whole or not at all.

Ranks that embed a split together write them into the gallery's folder, beside what is in it; rank 0 appends
them in order once all are there. What a killed command left, the next one takes up, with any number of ranks.

    pieces/FIRST-ROWS.f32    little-endian float32 rows FIRST to FIRST + ROWS - 1, and their crc32
"""

import struct
import time
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskreid_shards.atomic import plain_folder, remove_folder, write_atomically
from maskreid_shards.opening import read_file

FOLDER = "pieces"
SEEN = ".seen_"
VISIBLE_S = 5.0  # for a network file system to show a file that another machine wrote
CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `first + rows - 1` of the gallery."""

    first: int
    rows: int

    @property
    def numbers(self) -> NDArray[np.int64]:
        return np.arange(self.first, self.first + self.rows)

    def path(self, gallery: Path) -> Path:
        return gallery / FOLDER / f"{self.first:09d}-{self.rows}.f32"


def pieces_of(first: int, images: int, rows: int) -> list[Piece]:
    """Those of the rows from `first` on."""
    return [Piece(start, min(rows, images - start)) for start in range(first, images, rows)]


def begin_pieces(gallery: Path) -> str:
    """Make the folder; a name by which `is_seen` knows it. Raises OSError where a link, or somebody else's
    folder, has its name."""
    plain_folder(gallery / FOLDER)
    name = f"{SEEN}{uuid.uuid4().hex}"
    (gallery / FOLDER / name).touch()
    return name


def is_seen(gallery: Path, name: str) -> bool:
    """Whether this process sees the folder that `begin_pieces` made: on another machine, the same path may be
    another place. Waits VISIBLE_S for a file system to show it."""
    deadline = time.monotonic() + VISIBLE_S
    while not (gallery / FOLDER / name).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def write_piece(gallery: Path, piece: Piece, rows: NDArray[np.float32]) -> None:
    data = np.ascontiguousarray(rows, "<f4").tobytes()
    write_atomically(piece.path(gallery), data + CRC.pack(zlib.crc32(data)))


def read_piece(gallery: Path, piece: Piece, dimensions: int) -> NDArray[np.float32] | None:
    """(rows, D); None where there is none, or a damaged one."""
    size = 4 * piece.rows * dimensions
    try:
        data = read_file(piece.path(gallery), size + CRC.size)
    except OSError:
        return None
    if len(data) != size + CRC.size or zlib.crc32(data[:size]) != CRC.unpack(data[size:])[0]:
        return None
    return np.frombuffer(data, "<f4", piece.rows * dimensions).reshape(piece.rows, dimensions)


def missing_pieces(gallery: Path, pieces: Sequence[Piece], dimensions: int) -> list[Piece]:
    return [piece for piece in pieces if read_piece(gallery, piece, dimensions) is None]


def remove_pieces(gallery: Path) -> None:
    remove_folder(gallery / FOLDER)
