"""Masks that are NumPy files, read without unpickling anything."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..decode import MAX_PIXELS
from ..errors import ShardError

MAGIC = b"\x93NUMPY"


def array_picture(data: bytes) -> Image.Image:
    """A picture of mode L from the bytes of a `.npy` file: truth values, 0..255, or shares 0..1 of 255.

    Raises ShardError: not such a file, more or fewer than two axes longer than 1, other values.
    """
    values = np.squeeze(_array(data))
    if values.ndim != 2 or not 0 < values.size <= MAX_PIXELS:
        shape = " x ".join(map(str, values.shape)) or "no axes"
        raise ShardError(f"mask: an array of {shape}, and a mask has two axes; save one channel")
    if values.dtype == np.bool_:
        return Image.fromarray(np.where(values, 255, 0).astype(np.uint8))
    lowest, highest = values.min(), values.max()
    if np.issubdtype(values.dtype, np.floating) and 0 <= lowest <= highest <= 1:
        return Image.fromarray(np.rint(values * 255.0).astype(np.uint8))
    if np.issubdtype(values.dtype, np.integer) and 0 <= lowest <= highest <= 255:
        return Image.fromarray(values.astype(np.uint8))
    raise ShardError(
        f"mask: an array of {values.dtype} from {lowest} to {highest}; give 0..255, or shares from 0 to 1"
    )


def _array(data: bytes) -> NDArray[np.generic]:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
        count = int(np.prod(shape, dtype=object))
        if dtype.hasobject or count * dtype.itemsize != len(data) - file.tell():
            raise ValueError(f"{dtype} of {shape} in {len(data)} bytes")
        values = np.frombuffer(data, dtype, offset=file.tell())
        return values.reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # numpy raises nearly anything on arbitrary bytes
        raise ShardError(
            f"mask: not a readable NumPy file ({' '.join(str(error).split())}); replace it"
        ) from error
