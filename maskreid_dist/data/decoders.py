"""From a sample's bytes to pictures, three ways (`data.decoder`):

    pillow        the reference, and always that of evaluation: figures do not depend on the decoder
    torchvision   libjpeg-turbo and libpng straight into tensors, in the worker processes
    gpu           the workers only read; nvJPEG decodes a whole batch, which is augmented on the GPU too

Images that are no JPEG and masks that are no plain grey PNG are Pillow's everywhere, and so is whatever the
others refuse: its errors name shard and key.
"""

import struct
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from maskreid_dist.data.transforms import Picture, as_tensors
from maskreid_shards import RawPair, decode_mask, decode_pair, image_size

Decode = Callable[[RawPair], tuple[Picture, Picture]]
JPEG, END_OF_JPEG = b"\xff\xd8\xff", b"\xff\xd9"
PNG = b"\x89PNG\r\n\x1a\n"  # then length and name of the header, width, height, bits, colour type
GREY = 0


def decode_with_torchvision(raw: RawPair) -> tuple[Picture, Picture]:
    """RGB image (3, H, W) and mask (1, H, W), uint8 tensors. Raises
    maskreid_shards.ShardError as `decode_pair` does."""
    if not _is_whole_jpeg(raw):
        return decode_pair(raw)
    size = image_size(raw)  # before any decoding: a bomb is refused by its header
    try:
        image = decode_jpeg(_as_bytes(raw.image), ImageReadMode.RGB)
    except RuntimeError:
        return decode_pair(raw)
    return as_tensors(image, _mask(raw, size))


def decode_on(device: torch.device, raws: list[RawPair]) -> list[tuple[Tensor, Tensor]]:
    """The same for a batch, its JPEGs decoded together on `device`. Raises maskreid_shards.ShardError."""
    sizes = [image_size(raw) for raw in raws]
    is_jpeg = [_is_whole_jpeg(raw) for raw in raws]
    encoded = [_as_bytes(raw.image) for raw, jpeg in zip(raws, is_jpeg, strict=True) if jpeg]
    try:
        images = iter(decode_jpeg(encoded, ImageReadMode.RGB, device=device) if encoded else [])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # of one of them, it does not say which
        is_jpeg, images = [False] * len(raws), iter(())
    found = []
    for raw, size, jpeg in zip(raws, sizes, is_jpeg, strict=True):
        if jpeg:
            image, mask = as_tensors(next(images), _mask(raw, size))
        else:
            image, mask = as_tensors(*decode_pair(raw))
        found.append((image.to(device), mask.to(device)))
    return found


def _is_whole_jpeg(raw: RawPair) -> bool:
    """libjpeg would fill the rest of a truncated file with grey and say nothing; Pillow refuses it."""
    return raw.image.startswith(JPEG) and raw.image.endswith(END_OF_JPEG)


def _mask(raw: RawPair, size: tuple[int, int]) -> Picture:
    width, height = size
    if raw.mask.startswith(PNG) and raw.mask[16:26] == struct.pack(">IIBB", width, height, 8, GREY):
        try:
            mask = decode_png(_as_bytes(raw.mask))
        except RuntimeError:
            mask = None
        if mask is not None and mask.shape == (1, height, width):
            grey: Tensor = mask
            return grey
    return decode_mask(raw, size)


def _as_bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
