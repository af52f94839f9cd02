"""A trained network as a function of pictures: paths, PIL images, arrays or tensors in, embeddings out."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from maskreid_dist.config import Config
from maskreid_dist.data.transforms import EvaluationTransform
from maskreid_dist.errors import SampleError, UserError
from maskreid_dist.evaluation.calibration import Calibration
from maskreid_dist.evaluation.calibration_file import load_for
from maskreid_dist.gallery.store import Model
from maskreid_dist.model import ReIDNetwork, build_network
from maskreid_dist.model.checkpoint import find_checkpoint, load_weights
from maskreid_shards import ShardError
from maskreid_shards.decode import IMAGE_FORMATS, as_rgb, decode
from maskreid_shards.opening import PICTURE_BYTES, read_file

Picture: TypeAlias = str | Path | Image.Image | NDArray[Any] | Tensor
Segmenter: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]  # uint8 (3, H, W) to float (H, W) in 0..1


MASK_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


class Extractor:
    """`Extractor.of(RUN)(images, masks)` gives (N, D) float32 unit rows.

    Images: a path, a PIL image, uint8 (H, W, 3) NumPy or uint8 (3, H, W) torch, RGB. Masks, as many: a path,
    a PIL image, (H, W) NumPy or torch, bool or uint8 with 255 = person. Without masks those of `segment` are
    taken, or, where there is none, the whole image, which costs accuracy: the network was trained with masks.
    """

    def __init__(
        self,
        network: ReIDNetwork,
        config: Config,
        model: Model,
        *,
        device: torch.device | None = None,
        segment: Segmenter | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device).eval()
        self.model = model
        self.segment = segment
        self.calibration = calibration
        self.config = config
        self.dimensions = config.model.embedding_dim
        self.transform = EvaluationTransform(config.data)

    @classmethod
    def of(
        cls, path: Path | str, *, device: torch.device | None = None, segment: Segmenter | None = None
    ) -> "Extractor":
        """Of a run directory (its newest sound checkpoint) or a checkpoint. Raises CheckpointError."""
        checkpoint, _ = find_checkpoint(Path(path))
        network = build_network(checkpoint.config, checkpoint.classes)
        load_weights(network, checkpoint)
        config = checkpoint.config
        model = Model(config.name, checkpoint.step, checkpoint.weights_sha256)
        calibration = load_for(checkpoint.path, checkpoint.weights_sha256)
        return cls(network, config, model, device=device, segment=segment, calibration=calibration)

    def __call__(
        self, images: Sequence[Picture], masks: Sequence[Picture] | None = None, *, batch: int = 64
    ) -> NDArray[np.float32]:
        """(N, D) float32. Raises SampleError naming the picture that cannot be read, UserError for masks that
        do not fit."""
        parts = list(self.batches(images, masks, batch=batch))
        return np.concatenate(parts) if parts else np.zeros((0, self.dimensions), np.float32)

    def batches(
        self, images: Sequence[Picture], masks: Sequence[Picture] | None = None, *, batch: int = 64
    ) -> Iterator[NDArray[np.float32]]:
        """The same, a batch at a time: only one batch of pictures is held."""
        if masks is not None and len(masks) != len(images):
            raise UserError(f"{len(masks)} masks for {len(images)} images: give as many")
        for start in range(0, len(images), batch):
            mine = [
                as_image(picture, f"image {start + n}") for n, picture in enumerate(images[start:][:batch])
            ]
            given = None if masks is None else masks[start : start + batch]
            yield self._embed(mine, self._masks(mine, given, start))

    def pair(self, image: Picture, mask: Picture | None = None) -> tuple[Tensor, Tensor]:
        """What `__call__` takes of one picture before it is scaled: uint8 (3, H, W) and (1, H, W)."""
        whole = as_image(image, "image")
        return whole, self._masks([whole], None if mask is None else [mask], 0)[0]

    def _masks(self, images: list[Tensor], given: Sequence[Picture] | None, start: int) -> list[Tensor]:
        if given is not None:
            pairs = zip(given, images, strict=True)
            return [as_mask(mask, image, f"mask {start + n}") for n, (mask, image) in enumerate(pairs)]
        if self.segment is not None:
            found = self.segment(images)
            return [(mask * 255).round().to(torch.uint8)[None] for mask in found]
        return [torch.full((1, *image.shape[-2:]), 255, dtype=torch.uint8) for image in images]

    @torch.inference_mode()
    def _embed(self, images: list[Tensor], masks: list[Tensor]) -> NDArray[np.float32]:
        pairs = [self.transform(image, mask) for image, mask in zip(images, masks, strict=True)]
        image_B3HW = torch.stack([torch.Tensor.as_subclass(image, Tensor) for image, _ in pairs])
        mask_B1HW = torch.stack([torch.Tensor.as_subclass(mask, Tensor) for _, mask in pairs])
        image_B3HW = image_B3HW.to(self.device, memory_format=torch.channels_last)
        rows: NDArray[np.float32] = (
            self.network(image_B3HW, mask_B1HW.to(self.device)).embedding_BD.cpu().numpy()
        )
        return rows


def as_image(picture: Picture, name: str) -> Tensor:
    """uint8 (3, H, W). Raises SampleError naming the file, or `name`."""
    if isinstance(picture, str | Path):
        return _pixels(as_rgb(_decoded(picture, IMAGE_FORMATS), str(picture)))
    if isinstance(picture, Image.Image):
        return _pixels(picture.convert("RGB"))
    tensor = picture if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture)).movedim(-1, 0)
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] != 3 or not tensor.numel():
        raise SampleError(
            f"{name}: {picture.dtype} of shape {tuple(picture.shape)}; uint8 RGB, (H, W, 3) in NumPy or "
            "(3, H, W) in torch, is needed"
        )
    return tensor


def as_mask(picture: Picture, image: Tensor, name: str) -> Tensor:
    """uint8 (1, H, W) of the image's size, 255 = person. Raises SampleError naming the file, or `name`."""
    height, width = image.shape[-2:]
    if isinstance(picture, str | Path):
        name, picture = str(picture), _decoded(picture, MASK_FORMATS)
    if isinstance(picture, Image.Image):
        grey = picture if picture.mode in ("L", "1") else None
        if grey is None:
            raise SampleError(f"{name}: a mask of mode {picture.mode}; 8-bit grey is needed, 255 = person")
        if grey.size != (width, height):
            grey = grey.resize((width, height), Image.Resampling.NEAREST)
        return _pixels(grey.convert("L"))
    values: Any = picture if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture))
    if values.dtype == torch.bool:
        values = values.to(torch.uint8) * 255
    if values.dtype != torch.uint8 or values.squeeze(0).shape != (height, width):
        raise SampleError(
            f"{name}: {picture.dtype} of shape {tuple(picture.shape)}; bool or uint8 of shape "
            f"{(height, width)} is needed"
        )
    return torch.as_tensor(values).reshape(1, height, width)


def _pixels(picture: Image.Image) -> Tensor:
    tensor: Tensor = pil_to_tensor(picture)
    return tensor


def _decoded(path: str | Path, formats: tuple[str, ...]) -> Image.Image:
    try:
        return decode(read_file(Path(path), PICTURE_BYTES), formats=formats, where=str(path))
    except OSError as error:
        raise SampleError(f"{path}: {error.strerror}; name a picture") from None
    except ShardError as error:
        raise SampleError(str(error)) from None
