"""model.init: first weights by name and shape, with a map of what was taken; stage 1 to stage 2."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from maskreid_dist.config import ModelConfig
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model import MaskReID
from maskreid_dist.model.initial import take_initial_weights
from test_train import RECIPE, train


def network(seed: int, classes: int = 0, embedding_dim: int = 16) -> MaskReID:
    torch.manual_seed(seed)
    return MaskReID(ModelConfig(width=0.125, embedding_dim=embedding_dim), classes=classes)


def saved(source: MaskReID, path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, path)
    return path


def test_all_of_the_same_network_is_taken(tmp_path: Path) -> None:
    source, target = network(0, 5), network(1, 5)
    for buffer in source.fusing.bn.buffers():
        buffer += 3
    initial = take_initial_weights(target, saved(source, tmp_path / "a.safetensors"))
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    assert set(initial.taken) == set(source.state_dict())
    assert (initial.other_shape, initial.not_there, initial.left_out) == ((), (), ())
    assert initial.lines() == [f"initial weights: {len(initial.taken)} of {len(initial.taken)} tensors from "
                               f"{tmp_path / 'a.safetensors'}"]  # fmt: skip


def test_what_does_not_fit_is_named_and_stays(tmp_path: Path) -> None:
    """Another embedding, and a classifier on one side alone."""
    source, target = network(0, 5, 24), network(1, 0, 16)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    path = saved(source, tmp_path / "a.safetensors")
    initial = take_initial_weights(target, path)
    assert "fusing.fc.weight: (24, 336) there, (16, 336) here" in initial.other_shape
    assert set(initial.left_out) == {"classifier.2.weight", "classifier.2.bias"} and not initial.not_there
    kept = {line.split(":")[0] for line in initial.other_shape}
    assert kept == {f"fusing.{name}" for name in (
        "fc.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")}  # fmt: skip
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name] if name in kept else source.state_dict()[name]), name
    text = "\n".join(initial.lines())
    assert "(24, 336) there, (16, 336) here" in text and "classifier.2.weight" in text
    other = take_initial_weights(network(1, 7, 24), path)
    assert [line.split(":")[0] for line in other.other_shape] == ["classifier.2.weight", "classifier.2.bias"]
    without = take_initial_weights(network(2, 7), saved(target, path))
    assert without.not_there == ("classifier.2.weight", "classifier.2.bias")


def test_half_precision_is_cast(tmp_path: Path) -> None:
    source, target = network(0), network(1)
    take_initial_weights(target, saved(source.bfloat16(), tmp_path / "a.safetensors"))
    assert torch.equal(target.fusing.fc.weight, source.fusing.fc.weight.float())
    assert target.fusing.fc.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file; name a safetensors file, a run directory or a checkpoint"),
        ("folder", "no usable checkpoint here"),
        ("pickle", "not a safetensors file"),
        ("other", "none of its tensors has the name and shape"),
        ("nan", r"not finite in fusing\.fc\.weight"),
    ],
)
def test_files_that_are_none(tmp_path: Path, kind: str, words: str) -> None:
    path = tmp_path / "a.safetensors"
    source, target = network(0), network(1)
    if kind == "folder":
        path = tmp_path
    elif kind == "pickle":
        torch.save(source.state_dict(), path)
    elif kind == "other":
        save_file({"fusing.fc.weight": torch.zeros(2), "backbone.conv1": torch.zeros(3)}, path)
    elif kind == "nan":
        with torch.no_grad():
            source.fusing.fc.weight[3, 3] = torch.nan
        saved(source, path)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=words) as caught:
        take_initial_weights(target, path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_stage_1_to_stage_2_is_one_key(tmp_path: Path) -> None:
    """On two ranks; the map is printed once, and in every manifest, of a resumed run too."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        RECIPE.replace("identity_weight = 0.1", 'name = "softmax"').replace("steps = 6", "steps = 1")
    )
    train("one", recipe, tmp_path)
    stage_2 = tmp_path / "stage_2.toml"
    stage_2.write_text(RECIPE.replace("identity_weight = 0.1", "").replace("steps = 6", "steps = 1"))
    options = ("--set", f"model.init={tmp_path / 'tiny'}", "--set", "name=two")
    output = train("two", stage_2, tmp_path, *options, "--set", "optimizer.lr=1e-30")
    assert output.count("initial weights: ") == 1
    assert "there and not in this network: classifier.2.bias, classifier.2.weight" in output
    first, second = (
        load_file(next((tmp_path / name / "checkpoints").iterdir()) / "weights.safetensors")
        for name in ("tiny", "two")
    )
    for name, value in second.items():
        if "running" not in name and "tracked" not in name:
            assert torch.allclose(first[name], value, rtol=0, atol=1e-20), name
    train("one", stage_2, tmp_path, *options, "--set", "optimizer.lr=1e-30", "--set", "optimizer.steps=2",
          "--resume")  # fmt: skip
    maps = [
        json.loads(path.read_text())["initial_weights"]
        for path in (tmp_path / "two" / "checkpoints").glob("*/manifest.json")
    ]
    assert len(maps) == 2 and maps[0] == maps[1]
    assert set(maps[0]["taken"]) == set(second) and maps[0]["not_there"] == []
    output = train("two", stage_2, tmp_path, "--set", "name=three", "--set", "model.init=nowhere", status=2)
    assert output.count("no such file; name a safetensors file") == 1 and "Traceback" not in output
    assert not (tmp_path / "three").exists()
