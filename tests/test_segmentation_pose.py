"""The pose network: its file's reader and its torch form against NumPy, the square around a crop, where the
file comes from."""

import hashlib
import json
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskreid_dist.errors import UserError
from maskreid_dist.segmentation import pose_weights
from maskreid_dist.segmentation.pose import PoseSegmenter, _square, load_pose
from maskreid_dist.segmentation.pose_weights import find_pose_weights
from maskreid_dist.segmentation.tflite import read_graph
from maskreid_dist.segmentation.tflite_network import TfliteNetwork
from maskreid_shards import decode_pair, open_shards
from program import run
from tflite_files import plain_pose, pose_like, pose_like_outputs

CPU = torch.device("cpu")
CACHED = Path(torch.hub.get_dir(), "checkpoints", f"pose_landmark_full-{pose_weights.SHA256[:8]}.tflite")
PUBLISHED = pytest.mark.skipif(not CACHED.is_file(), reason=f"needs the published weights, {CACHED}")


@pytest.mark.parametrize("side", [256, 192])
def test_the_graph_in_torch_against_numpy(side: int) -> None:
    data, weights = pose_like()
    names = ["Identity_2", "Identity"] if side == 256 else ["Identity_2"]
    network = TfliteNetwork(read_graph(data, "own"), names, "own")
    images = np.random.default_rng(1).random((2, side, side, 3))
    batch = torch.from_numpy(images).float().permute(0, 3, 1, 2)
    found = network(batch)
    assert found[0].shape == (2, 1, side, side)
    for number, image in enumerate(images):
        mask, head = pose_like_outputs(image, weights)
        assert mask.std() > 0.5
        np.testing.assert_allclose(found[0][number, 0], mask, atol=2e-4)
        if side == 256:
            np.testing.assert_allclose(found[1][number], head, atol=2e-4)
    if side == 256:
        (sure,) = TfliteNetwork(read_graph(data, "own"), ["Identity_1"], "own")(batch)
        torch.testing.assert_close(sure.flatten(1), found[1].sigmoid())


@PUBLISHED
def test_the_published_graph_against_tflites_own_runner() -> None:
    """On crops: at most one pixel in 10,000 by more than 1e-3. Logits reach thousands, and either's own
    distance from float64 is of that size."""
    runner = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = runner.Interpreter(str(CACHED))
    interpreter.allocate_tensors()
    places = {one["name"]: one["index"] for one in interpreter.get_output_details()}
    graph = read_graph(CACHED.read_bytes(), "published")
    names = ["Identity", "Identity_1", "Identity_2"]
    network = TfliteNetwork(graph, names, "published")
    query = open_shards("shards/walkers").split("query")
    differ = []
    for pair in query.read_many(range(0, len(query), 80)):
        crop = torch.from_numpy(np.array(decode_pair(pair)[0])).permute(2, 0, 1)
        square = _square(crop, 256)[0][None]
        interpreter.set_tensor(
            interpreter.get_input_details()[0]["index"], square.permute(0, 2, 3, 1).contiguous().numpy()
        )
        interpreter.invoke()
        theirs = {name: interpreter.get_tensor(places[name]) for name in names}
        landmarks, person, mask = network(square)
        np.testing.assert_allclose(landmarks, theirs["Identity"], atol=0.01)
        np.testing.assert_allclose(person.flatten(1), theirs["Identity_1"], atol=1e-3)
        expected = torch.from_numpy(theirs["Identity_2"]).permute(0, 3, 1, 2).sigmoid()
        differ.append((mask.sigmoid() - expected).abs())
    assert (torch.cat(differ) > 1e-3).float().mean() <= 1e-4 and torch.cat(differ).max() <= 0.01


def bright(height: int, width: int, rows: slice, columns: slice) -> torch.Tensor:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, rows, columns] = 255
    return image


@pytest.mark.parametrize(("height", "width"), [(128, 64), (100, 100), (60, 120), (333, 40), (7, 3)])
def test_a_mask_lies_where_the_person_is(height: int, width: int) -> None:
    """The network is one that says "person" where the image is bright."""
    segmenter = PoseSegmenter(read_graph(plain_pose(), "own"), CPU, "own")
    left = bright(height, width, slice(None), slice(0, width // 2))
    top = bright(height, width, slice(0, height // 2), slice(None))
    for image, (mask, alone) in zip(
        (left, top),
        zip(segmenter([left, top]), segmenter([left]) + segmenter([top]), strict=True),
        strict=True,
    ):
        assert mask.shape == (height, width) and mask.dtype == torch.float32
        torch.testing.assert_close(mask, alone)  # whatever is in the batch
        assert 0 <= mask.min() and mask.max() <= 1
        # Rows and columns away from the edge of the bright half are as the image; an edge takes a pixel.
        person = image[0] > 127
        wrong = (mask > 0.5) != person
        assert wrong.sum() <= 2 * max(height, width) * max(1, height // 192)
        assert mask[person].mean() > 0.75 and mask[~person].mean() < 0.25


@pytest.mark.parametrize(("height", "width"), [(128, 64), (60, 120)])
def test_landmarks_are_in_the_crops_pixels(height: int, width: int) -> None:
    bias = np.zeros((39, 5))
    bias[:, 0] = bias[:, 1] = 128  # the square's middle, which is the crop's
    bias[0, :2] = 128 + 32  # and an eighth of the square right of it and below
    bias[:, 3] = np.linspace(-4, 4, 39)
    found = PoseSegmenter(read_graph(plain_pose(bias.ravel()), "own"), CPU, "own").landmarks(
        [torch.zeros(3, height, width, dtype=torch.uint8)]
    )[0]
    side = max(1.25 * height, width)
    assert found.shape == (33, 3)
    np.testing.assert_allclose(found[1:, :2], [[width / 2, height / 2]] * 32, atol=0.01 * side)
    np.testing.assert_allclose(found[0, :2], [width / 2 + side / 8, height / 2 + side / 8], atol=0.01 * side)
    np.testing.assert_allclose(found[:, 2], 1 / (1 + np.exp(-bias[:33, 3])), atol=1e-3)


def test_a_side_that_the_strides_do_not_divide() -> None:
    with pytest.raises(UserError, match="multiples of 32; use 192"):
        PoseSegmenter(read_graph(plain_pose(), "own"), CPU, "own", side=200)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_graph_is_one_line(data: st.DataObject) -> None:
    file = bytearray(plain_pose())
    if data.draw(st.booleans()):
        del file[data.draw(st.integers(0, len(file) - 1)) :]
    for _ in range(data.draw(st.integers(1, 4))):
        if file:
            file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        TfliteNetwork(read_graph(bytes(file), "f.tflite"), ["Identity_2"], "f.tflite")
    except UserError as error:
        assert str(error).startswith("f.tflite: ") and "\n" not in str(error)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The file of an own network, which is then the right one; an empty cache; no package index."""
    data = plain_pose()
    monkeypatch.setattr(pose_weights, "SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return data


def refused(file: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        find_pose_weights(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_given_file(own: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(own)
    assert find_pose_weights(tmp_path / "a.tflite") == tmp_path / "a.tflite"
    (tmp_path / "b.tflite").write_bytes(own[:-1])
    assert "b.tflite" in refused(tmp_path / "b.tflite") and "sha256" in refused(tmp_path / "b.tflite")
    assert "No such file" in refused(tmp_path / "none.tflite")
    assert "Is a directory" in refused(tmp_path)


def wheel(folder: Path, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    about = "mediapipe-0.10.21.dist-info"
    with zipfile.ZipFile(
        folder / "mediapipe-0.10.21-cp312-cp312-manylinux_2_28_x86_64.whl", "w", zipfile.ZIP_DEFLATED
    ) as archive:
        archive.writestr(f"mediapipe/{pose_weights.INSIDE}", content)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: mediapipe\nVersion: 0.10.21\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\n")
        archive.writestr(f"{about}/RECORD", "")


def test_out_of_the_wheel_that_pip_fetches(
    own: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused(None)
    assert "pip cannot fetch mediapipe==0.10.21" in message and "give it as the weights" in message
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    wheel(tmp_path / "wheels", own[:-1])
    assert "another sha256" in refused(None)
    assert not list((tmp_path / "home").rglob("*.tflite"))
    wheel(tmp_path / "wheels", own)
    found = find_pose_weights(None)
    assert found.read_bytes() == own and found.is_relative_to(tmp_path / "home")
    (tmp_path / "wheels").rename(tmp_path / "gone")
    assert find_pose_weights(None) == found  # from the cache
    found.write_bytes(own[:100])
    assert "sha256" in refused(None) and str(found) in refused(None)


def test_a_torn_wheel(tmp_path: Path) -> None:
    wheel(tmp_path, plain_pose())
    (file,) = tmp_path.glob("*.whl")
    data = file.read_bytes()
    for torn in (data[:-10], data[:50] + bytes(40) + data[90:], b""):
        file.write_bytes(torn)
        with pytest.raises(UserError, match="mediapipe"):
            pose_weights.read_wheel(file)


def test_out_of_an_installed_package_without_importing_it(
    own: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "site" / "mediapipe" / pose_weights.INSIDE
    file.parent.mkdir(parents=True)
    file.write_bytes(own)
    (tmp_path / "site/mediapipe/__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find_pose_weights(None).read_bytes() == own
    assert "mediapipe" not in sys.modules


def crops(folder: Path) -> Path:
    """Two identities whose person is the bright half, left or right."""
    for pid in ("0001", "0002"):
        (folder / pid).mkdir(parents=True)
        for number in range(2):
            half = bright(32, 16, slice(None), slice(0, 8) if number else slice(8, 16))
            Image.fromarray(half.permute(1, 2, 0).numpy()).save(folder / pid / f"{number}.png")
    return folder


def test_crops_to_shards_in_one_command(own: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.tflite").write_bytes(own)
    given_file = ("--segment-weights", tmp_path / "w.tflite", "--segment-device", "cpu")
    src = crops(tmp_path / "crops")
    status, output = run("convert", "folder", src, tmp_path / "out", "--segment", "pose", *given_file)
    assert status == 0 and "masks: 4 made" in output, output
    assert "made by model pose" in output and "licence Apache-2.0" in output
    masks = json.loads((tmp_path / "out/manifest.json").read_text())["masks"]
    assert masks["maker"] == {
        "model": "pose", "weights_sha256": hashlib.sha256(own).hexdigest(), "input_height": "192",
        "licence": "Apache-2.0",
    }  # fmt: skip
    train = open_shards(tmp_path / "out").split("train")
    for pair in train.read_many(range(len(train))):
        (tmp_path / "mask.png").write_bytes(pair.mask)
        mask = np.asarray(Image.open(tmp_path / "mask.png"))
        left = bool(int(pair.key[-1]))
        assert (mask[:, :7].min() > 200) == left and (mask[:, 9:].min() > 200) != left
    assert run("verify", tmp_path / "out")[0] == 0
    # The masks' own command, and its default network.
    (tmp_path / "home/hub/checkpoints").mkdir(parents=True)
    cached = tmp_path / f"home/hub/checkpoints/pose_landmark_full-{pose_weights.SHA256[:8]}.tflite"
    cached.write_bytes(own)
    status, output = run("segment", "folder", src, tmp_path / "out-masks", "--device", "cpu")
    assert status == 0 and "0 made, 4 kept" in output


def test_bad_weights_are_one_line_and_leave_nothing(own: bytes, tmp_path: Path) -> None:
    src = crops(tmp_path / "crops")
    (tmp_path / "w.tflite").write_bytes(own[:-1])
    for flags in (("--segment-weights", tmp_path / "w.tflite"), ("--segment-height", 100)):
        (tmp_path / "ok.tflite").write_bytes(own)
        more = flags if "weights" in flags[0] else (*flags, "--segment-weights", tmp_path / "ok.tflite")
        status, output = run("convert", "folder", src, tmp_path / "out", "--segment", "pose", *more)
        assert status == 2 and output.count("\n") == 1, output
        assert not (tmp_path / "out").exists() and not (tmp_path / "out-masks").exists()


def test_load_pose_reads_the_file(tmp_path: Path) -> None:
    (tmp_path / "w.tflite").write_bytes(plain_pose())
    image = bright(32, 16, slice(None), slice(None))
    assert load_pose(tmp_path / "w.tflite", CPU)([image])[0].min() > 0.99


def test_landmarks_go_into_the_samples_json(own: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.tflite").write_bytes(own)
    src = crops(tmp_path / "crops")
    flags = ("--segment", "pose", "--segment-weights", tmp_path / "w.tflite", "--segment-device", "cpu")
    assert run("convert", "folder", src, tmp_path / "plain", *flags)[0] == 0
    # Masks are there, landmarks are not yet: the same folder gets them.
    more = (*flags, "--masks", tmp_path / "plain-masks", "--landmarks")
    status, output = run("convert", "folder", src, tmp_path / "out", *more)
    assert status == 0 and "masks: 4 made, 0 kept" in output, output
    status, output = run("convert", "folder", src, tmp_path / "again", *more)
    assert status == 0 and "masks: 0 made, 4 kept" in output, output
    about = json_members(tmp_path / "out")
    assert len(about) == 4 and json_members(tmp_path / "again") == about
    for one, without in zip(about, json_members(tmp_path / "plain"), strict=True):
        points = np.array(one.pop("landmarks"))
        # All zeros of the network: the square's corner, half visible. 32 x 16 pixels in a square of 40.
        assert points.shape == (33, 3) and one == without
        np.testing.assert_allclose(points, [[-12, -4, 0.5]] * 33, atol=0.2)
    assert run("verify", tmp_path / "out")[0] == 0
    # From masks made before; and without landmarks beside them.
    masks = ("--masks", tmp_path / "plain-masks", "--landmarks")
    assert run("convert", "folder", src, tmp_path / "third", *masks)[0] == 0
    assert json_members(tmp_path / "third") == json_members(tmp_path / "again")
    for content in (None, b"[[1, 2]]", b"{"):
        file = tmp_path / "plain-masks/crops/0001/0.landmarks.json"
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        status, output = run("convert", "folder", src, tmp_path / "no", *masks)
        assert status == 2 and "0.landmarks.json" in output and "segment --landmarks" in output
        file.write_bytes(b"[]")
    status, output = run("convert", "folder", src, tmp_path / "no", "--landmarks")
    assert status == 2 and output.count("\n") == 1
    status, output = run("segment", "folder", src, tmp_path / "no", "--model", "fcn_resnet50", "--landmarks")
    assert status == 2 and "use the model pose" in output and not (tmp_path / "no").exists()


def json_members(shards: Path) -> list[dict[str, Any]]:
    train = open_shards(shards).split("train")
    found = []
    for url in train.urls():
        with tarfile.open(url) as tar:
            files = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
            found += [json.loads(file.read()) for file in files if file is not None]
    return [{k: v for k, v in one.items() if k != "dataset"} for one in found]
