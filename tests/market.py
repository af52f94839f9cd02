"""A tiny data set in Market-1501's layout, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def market(folder: Path, cameras: tuple[int, ...] = (1, 2)) -> Path:
    """Three identities to train on and two to look for, with masks."""
    generator = np.random.default_rng(0)
    for part, pids in (("bounding_box_train", (1, 2, 3)), ("query", (4, 5)), ("bounding_box_test", (4, 5))):
        (folder / part).mkdir(parents=True)
        (folder / f"{part}_seg").mkdir()
        for pid in pids:
            for frame, camera in enumerate(cameras):
                stem = f"{pid:04d}_c{camera}s1_{frame:06d}_0{1 if part == 'query' else 2}"
                pixels = generator.integers(0, 256, (32, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / f"{stem}.jpg")
                mask = np.zeros((32, 16), np.uint8)
                mask[4:28, 4:12] = 255
                Image.fromarray(mask).save(folder / f"{part}_seg" / f"{stem}.png")
    return folder
