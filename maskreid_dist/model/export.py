"""A trained network as a file for other programs: ONNX, or torch.export's.

Inputs `image`, uint8 (B, 3, H, W), and `mask`, uint8 (B, 1, H, W), 255 = person, at the recipe's height and
width (after its resize and centre crop); output `embedding`, float32 (B, D), unit rows. B is any number.
"""

import tempfile
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskreid_dist.config import Config
from maskreid_dist.errors import UserError
from maskreid_dist.model.network import ReIDNetwork
from maskreid_shards.opening import WEIGHTS_BYTES, read_file

TOLERANCE = 1e-4  # between onnxruntime's embeddings and torch's
SUFFIXES = (".onnx", ".pt2")
ROWS = 3  # that are compared: another number than was traced


class Embedder(nn.Module):
    """Image and mask to embedding alone."""

    def __init__(self, network: ReIDNetwork) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        embedding_BD: Tensor = self.network(image, mask).embedding_BD
        return embedding_BD


def export_network(network: ReIDNetwork, config: Config, path: Path) -> float | None:
    """Write `path`; the largest difference to torch's embeddings of random images, None where onnxruntime is
    not installed.

    Raises UserError: another suffix than .onnx or .pt2, a package is missing, or they differ by more than
    1e-4, and then there is no file.
    """
    check_export(path)
    embedder = Embedder(network)
    traced = _pair(config, 2)
    batch = {0: torch.export.Dim("batch")}
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if path.suffix == ".pt2":
                program = torch.export.export(embedder, traced, dynamic_shapes=(batch, batch))
                torch.export.save(program, partial)
            else:
                _to_onnx(embedder, traced, partial, ("image", "mask"), "embedding", (batch, batch))
        difference = _difference(embedder, partial, _pair(config, ROWS))
        if difference is not None and not difference <= TOLERANCE:
            raise UserError(
                f"{path}: differs from torch by {difference:.1e}, more than {TOLERANCE}; not written"
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return difference


def export_bytes(network: ReIDNetwork, config: Config) -> bytes:
    """The ONNX file's. Raises UserError as `export_network` does."""
    with tempfile.TemporaryDirectory(prefix="maskreid-export-") as folder:
        path = Path(folder, "network.onnx")
        export_network(network, config, path)
        return read_file(path, WEIGHTS_BYTES)


def onnx_bytes(module: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str], output: str) -> bytes:
    """A module with one output as an ONNX file's bytes, for inputs of these shapes."""
    with tempfile.TemporaryDirectory(prefix="maskreid-export-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "module.onnx")
        with torch.no_grad():
            _to_onnx(module.eval(), inputs, path, names, output)
        return read_file(path, WEIGHTS_BYTES)


def _to_onnx(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    names: Sequence[str],
    output: str,
    dynamic_shapes: Any = None,
) -> None:
    torch.onnx.export(
        module,
        inputs,
        path,
        dynamo=True,
        verbose=False,
        external_data=False,
        dynamic_shapes=dynamic_shapes,
        input_names=list(names),
        output_names=[output],
    )


def check_export(path: Path) -> None:
    """Raise UserError where `export_network` could not begin."""
    if path.suffix == ".safetensors":  # which a checkpoint has already
        raise UserError(
            f"{path}: export writes {' or '.join(SUFFIXES)}; safetensors with manifest and card: "
            "maskreid push RUN OWNER/NAME --dry-run --output FOLDER"
        )
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: name a file that ends in {' or '.join(SUFFIXES)}")
    if path.suffix == ".onnx" and find_spec("onnxscript") is None:  # what torch's exporter needs
        raise UserError(f"{path}: ONNX needs the package onnxscript: pip install 'maskreid-dist[export]'")


def _pair(config: Config, rows: int) -> tuple[Tensor, Tensor]:
    size = (config.data.height, config.data.width)
    generator = torch.Generator().manual_seed(rows)
    image = torch.randint(0, 256, (rows, 3, *size), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 2, (rows, 1, *size), dtype=torch.uint8, generator=generator) * 255
    return image, mask


@torch.no_grad()
def _difference(embedder: Embedder, path: Path, pair: tuple[Tensor, Tensor]) -> float | None:
    expected = embedder(*pair)
    if path.suffix == ".pt2":
        found: Tensor = torch.export.load(path).module()(*pair)
        return float((found - expected).abs().max())
    if find_spec("onnxruntime") is None:
        return None
    onnxruntime = import_module("onnxruntime")
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {"image": pair[0].numpy(), "mask": pair[1].numpy()})
    return float((torch.from_numpy(rows) - expected).abs().max())
