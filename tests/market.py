"""A small data set in Market-1501's layout, for tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
SIZE = (16, 32)


def jpeg(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def png(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[seed % 8 : 20, 4:12] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_pair(src: Path, split: str, name: str, seed: int) -> Path:
    """One image and its mask; returns the image's path."""
    folder = src / FOLDERS[split]
    masks = src / f"{FOLDERS[split]}_seg"
    folder.mkdir(parents=True, exist_ok=True)
    masks.mkdir(exist_ok=True)
    (folder / f"{name}.jpg").write_bytes(jpeg(seed))
    (masks / f"{name}.png").write_bytes(png(seed))
    return folder / f"{name}.jpg"


def write_market(
    src: Path, identities: int = 6, images: int = 4, cameras: tuple[int, int, int] = (1, 2, 3)
) -> Path:
    """Train: `identities` x `images`, and 0099 with one; query and gallery of 2, 3 junk, 3 distractors.

    Queries are of the first camera, their matches of the second, junk and distractors of the third.
    """
    first, second, third = cameras
    seed = 0
    for pid in range(1, identities + 1):
        for number in range(images):
            seed += 1
            write_pair(src, "train", f"{pid:04d}_c{cameras[number % 3]}s1_{seed:06d}_01", seed)
    write_pair(src, "train", f"0099_c{second}s1_000001_01", 999)
    for pid in (200, 201):
        write_pair(src, "query", f"{pid:04d}_c{first}s1_000001_01", pid)
        for number in range(3):
            write_pair(src, "gallery", f"{pid:04d}_c{second}s1_{number:06d}_01", pid + 10 * number)
    for number in range(3):
        write_pair(src, "gallery", f"-1_c{third}s1_{number:06d}_01", 500 + number)
        write_pair(src, "gallery", f"0000_c{third}s1_{number:06d}_01", 600 + number)
    return src
