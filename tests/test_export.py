"""Networks as files for other programs, against torch."""

from pathlib import Path

import pytest
import torch

from maskreid_dist.config import Config
from maskreid_dist.errors import UserError
from maskreid_dist.model import build_network
from maskreid_dist.model import export as exporting
from maskreid_dist.model.export import Embedder, export_network
from program import run

CONFIG = Config.model_validate(
    {
        "name": "t",
        "data": {"shards": "-", "height": 36, "width": 14},
        "model": {"width": 0.125, "embedding_dim": 8, "fusing_rows": 2},
    }
)


@pytest.mark.parametrize("with_mirror", [False, True])
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_both_streams_any_batch_and_torchs_embeddings(suffix: str, with_mirror: bool, tmp_path: Path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = CONFIG.model.model_copy(update={"with_mirror": with_mirror})
    network = build_network(CONFIG.model_copy(update={"model": model}), 3)
    path = tmp_path / f"network{suffix}"
    difference = export_network(network, CONFIG, path)
    assert difference is not None and difference <= 1e-5
    image, mask = exporting._pair(CONFIG, 5)
    other = exporting._difference(Embedder(network), path, (image, 255 - mask))  # the mask is an input
    assert other is not None and other <= 1e-5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_difference", lambda *_: 0.5)
    with pytest.raises(UserError, match="differs from torch"):
        export_network(build_network(CONFIG, 0), CONFIG, tmp_path / "network.pt2")
    assert not list(tmp_path.iterdir())


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.onnx or \.pt2"):
        export_network(build_network(CONFIG, 0), CONFIG, tmp_path / "network.tflite")
    status, output = run("export", tmp_path, tmp_path / "network.tflite")
    assert status == 2 and "ends in .onnx or .pt2" in " ".join(output.split())
