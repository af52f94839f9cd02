"""The networks that make person masks: torchvision's, and MediaPipe's pose network (`pose.py`).

torchvision's were trained on photographs and expect at least 224 pixels, so crops are enlarged to
`input_height` first, and the masks come back in the crops' own sizes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import get_model_weights
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.segmentation import deeplabv3_resnet50, fcn_resnet50

from maskreid_dist.errors import UserError
from maskreid_dist.segmentation.pose import MASK_SIDE, load_pose
from maskreid_dist.segmentation.pose_weights import LICENCE as POSE_LICENCE
from maskreid_dist.segmentation.pose_weights import find_pose_weights

SegmentationModel = Literal["pose", "deeplabv3_resnet50", "fcn_resnet50", "maskrcnn_resnet50"]
Segmenter = Callable[[Sequence[Tensor]], list[Tensor]]

INPUT_HEIGHT = 512
MIN_SCORE = 0.5  # of a Mask R-CNN instance
# Of ImageNet, as torchvision's FCN and DeepLabV3 weights were trained with; Mask R-CNN normalises by itself.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VOC_CLASSES, VOC_PERSON = 21, 15
COCO_PERSON = 1


def find_weights(model: SegmentationModel, file: Path | None, *, progress: bool = True) -> Path:
    """The weights file to use: `file`, or the published one from torch.hub's cache, fetched if need be.

    Raises UserError: no such file; not in the cache and not to be fetched; for pose, another file than the
    published one.
    """
    if model == "pose":
        return find_pose_weights(file)
    if file is not None:
        if not file.is_file():
            raise UserError(f"{file}: no such file; give a state dict of torchvision's {model}")
        return file
    # Mask R-CNN's name in torchvision says that it has a feature pyramid.
    url = get_model_weights("maskrcnn_resnet50_fpn" if model == "maskrcnn_resnet50" else model).DEFAULT.url
    cached = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            # Into a temporary file first; the sha256 in the name is checked.
            prefix = cached.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(url, str(cached), hash_prefix=prefix, progress=progress)
        except (URLError, OSError, RuntimeError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
            raise UserError(
                f"{cached}: not there, and {url} cannot be fetched ({reason}); put that file there, "
                "or give the weights with --segment-weights"
            ) from None
    return cached


def default_height(model: SegmentationModel) -> int:
    """Pixels that a crop is brought to: its height, for pose the side of the square around it."""
    return MASK_SIDE if model == "pose" else INPUT_HEIGHT


def licence_of(model: SegmentationModel, weights: Path | None) -> str:
    """The licence of the weights: known where the program says which they are."""
    if model == "pose":
        return POSE_LICENCE
    return "as given by their owner" if weights is not None else "BSD-3-Clause (torchvision), trained on COCO"


def load_segmenter(
    model: SegmentationModel, weights: Path, device: torch.device, *, input_height: int | None = None
) -> Segmenter:
    """The network with the weights of a file: a state dict, or a checkpoint that holds one as "model"; for
    pose its TFLite file.

    A segmenter takes images, uint8 (3, H, W) of any sizes, and returns the probability of person, float32
    (H, W) in 0..1 on the CPU, for each. Classes are read off the weights: VOC's 21 (person 15) or 2
    (person 1) for FCN and DeepLabV3; COCO's 91, or any other number, with person 1 for Mask R-CNN.

    Raises UserError: not a state dict that fits the model, other classes.
    """
    if model not in get_args(SegmentationModel):
        raise UserError(f"segmentation model {model!r}: use one of {', '.join(get_args(SegmentationModel))}")
    input_height = default_height(model) if input_height is None else input_height
    if model == "pose":
        return load_pose(weights, device, input_height)
    state = _read_state(weights)
    if model == "maskrcnn_resnet50":
        classes = _classes(state, "roi_heads.box_predictor.cls_score.weight", model, weights)
        # The published weights were trained with frozen statistics and eps 0, and hold no batch counters.
        frozen = not any(name.endswith("num_batches_tracked") for name in state)
        network = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=classes,
            min_size=input_height // 2, max_size=2 * input_height,
        )  # fmt: skip
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and frozen:
                module.eps = 0.0
        _fill(network, state, model, weights)
        return InstanceSegmenter(network.to(device).eval(), device)
    classes = _classes(state, "classifier.4.weight", model, weights)
    if classes not in (2, VOC_CLASSES):
        raise UserError(
            f"{weights}: {classes} classes; {model} needs VOC's {VOC_CLASSES} (person {VOC_PERSON}) or 2 "
            "(person 1)"
        )
    build = deeplabv3_resnet50 if model == "deeplabv3_resnet50" else fcn_resnet50
    network = build(weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)
    # The auxiliary head served training alone.
    state = {name: value for name, value in state.items() if not name.startswith("aux_classifier.")}
    _fill(network, state, model, weights)
    person = VOC_PERSON if classes == VOC_CLASSES else 1
    return SemanticSegmenter(network.to(device).eval(), device, person, input_height)


class SemanticSegmenter:
    """FCN or DeepLabV3: the softmax probability of the class person at each pixel.

    All crops of a batch are brought to (input_height, input_height / 2), which keeps the shape of a 2:1 crop
    and stretches others.
    """

    def __init__(self, network: nn.Module, device: torch.device, person: int, input_height: int) -> None:
        self.network, self.device, self.person = network, device, person
        self.size = (input_height, input_height // 2)
        self.mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        batch = torch.stack([_resized(image.to(self.device).float() / 255, self.size) for image in images])
        probability = self.network((batch - self.mean) / self.std)["out"].softmax(1)[:, self.person, None]
        own = [_resized(p, image.shape[-2:]) for p, image in zip(probability, images, strict=True)]
        return [p[0].clamp(0, 1).cpu() for p in own]


class InstanceSegmenter:
    """Mask R-CNN: the soft mask of the person at the crop's centre, all 0 where there is none.

    That is the instance of class person with a score of at least MIN_SCORE whose box has its centre nearest
    to the crop's, distances in units of the crop's width and height; the higher score at equal distance.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network, device

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        found = self.network([image.to(self.device).float() / 255 for image in images])
        return [_central_person(f, image.shape[-2:]) for f, image in zip(found, images, strict=True)]


def _central_person(found: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
    height, width = size
    persons = (found["labels"] == COCO_PERSON) & (found["scores"] >= MIN_SCORE)
    if not persons.any():
        return torch.zeros(height, width)
    left, top, right, bottom = found["boxes"][persons].T
    distance = torch.hypot((left + right) / (2 * width) - 0.5, (top + bottom) / (2 * height) - 0.5)
    # Instances come by falling score, and argmin takes the first of equals only by chance: sort stably.
    nearest = distance.argsort(stable=True)[0]
    return found["masks"][persons][nearest, 0].cpu()


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(image[None], tuple(size), mode="bilinear", antialias=True)[0]


def _read_state(file: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a loader fed with arbitrary bytes raises nearly anything: one line
        raise UserError(
            f"{file}: not a file of weights alone ({type(error).__name__}); save the model's state_dict with "
            "torch.save"
        ) from None
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file}: holds no state dict; save the model's state_dict with torch.save")
    return state


def _classes(state: Mapping[str, Any], head: str, model: str, file: Path) -> int:
    if head not in state:
        raise UserError(f"{file}: not the weights of {model}: {head} is missing")
    return int(state[head].shape[0])


def _fill(network: nn.Module, state: Mapping[str, Any], model: str, file: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        # Its first line is a heading, the next says what does not fit, in as many words as there are layers.
        detail = str(error).splitlines()[1].strip()
        raise UserError(f"{file}: not the weights of {model}: {detail[:160]}") from None
