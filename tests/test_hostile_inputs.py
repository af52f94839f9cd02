"""Files that are no files, sizes that are lies, files that reach into others: one line, at once."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from market import write_market
from maskreid_dist.cli import launcher
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model.checkpoint import read_checkpoint
from maskreid_dist.recipe import load_recipe
from maskreid_dist.training.environment import Place
from maskreid_dist.training.meeting import open_store
from maskreid_shards import ShardError, open_shards
from maskreid_shards.layouts.matlab import open_hdf5
from maskreid_shards.opening import json_lines, parse_json, read_file, regular_only
from nodes import write_recipe
from program import run

KINDS = ["pipe", "device", "folder", "link to a pipe"]


def plant(path: Path, kind: str) -> None:
    """Something else than a file in place of what lies there."""
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")  # never ends
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.mkfifo(path.with_name("a pipe"))
        path.symlink_to(path.with_name("a pipe"))


@pytest.mark.parametrize("kind", KINDS)
def test_only_files_are_opened(tmp_path: Path, kind: str) -> None:
    plant(tmp_path / "given", kind)
    with pytest.raises(OSError) as caught:
        open(tmp_path / "given", "rb", opener=regular_only)
    assert caught.value.filename == str(tmp_path / "given")


def test_no_more_is_read_than_anybody_needs(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="1099511627776 bytes, and at most 9 are read"):
        read_file(tmp_path / "sparse", 9)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5_000, '{"a": ' * 9_999, "\0", "\ud800".encode(errors="surrogatepass")]
)
def test_odd_json_is_a_value_error(text: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    (tmp_path / "lines").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert list(json_lines(tmp_path / "lines")) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["manifest.json", "index/train.npy", "train/000000.tar"])
def test_shards_that_are_no_files(shards: Path, name: str, kind: str) -> None:
    plant(shards / name, kind)
    for command in (["verify", "--workers", "1"], ["stats"]):
        status, output = run(command[0], shards, *command[1:])
        assert status in (1, 2) and name in output, output


def odd_market(tmp_path: Path, folder: str, kind: str) -> tuple[Path, str]:
    src = write_market(tmp_path / "market", identities=2, images=2)
    path = sorted((src / folder).iterdir())[0]
    plant(path, kind)
    return src, path.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folder", ["bounding_box_train", "bounding_box_train_seg"])
def test_images_and_masks_that_are_no_files(tmp_path: Path, folder: str, kind: str) -> None:
    src, name = odd_market(tmp_path, folder, kind)
    status, output = run("convert", "market1501", src, tmp_path / "out", "--workers", "1")
    assert status == 2 and name in output and not (tmp_path / "out").exists(), output


@pytest.mark.parametrize("kind", KINDS)
def test_recipes_and_lists_that_are_no_files(tmp_path: Path, kind: str) -> None:
    plant(tmp_path / "given", kind)
    for arguments in (
        ["recipe", tmp_path / "given"],
        ["convert", "csv", tmp_path / "given", tmp_path / "out"],
    ):
        status, output = run(*arguments)
        assert status == 2 and output.count("\n") == 1 and str(tmp_path / "given") in output, output


@pytest.mark.parametrize(
    "text",
    [
        "loss.name = ['a']",
        f"model.embedding_dim = {10**15}",
        f"data.height = {2**40}",
        "a = " + "9" * 5_000,
        "a = " + "[" * 5_000,
        "a = 0x" + "f" * 9_999,
        "\0",
        "name = '\\u001b'\x1b",
    ],
)
def test_odd_recipes_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.toml").write_text(text)
    status, output = run("recipe", tmp_path / "odd.toml")
    assert status == 2 and output.count("\n") == 1 and "\x1b" not in output, output


@pytest.mark.parametrize(
    "row",
    [
        "a\0.png,1,1,train",
        f"a.png,{'9' * 5_000},1,train",
        f"a.png,1,{'9' * 5_000},train",
        f"{'a' * 9_999},1,1,train",
        "/,1,1,train",
        "/none.png,1,1,train",
        "..,1,1,train",
    ],
)
def test_odd_lists_are_one_line(tmp_path: Path, row: str) -> None:
    (tmp_path / "list.csv").write_text(f"path,pid,camid,split\n{row}\n")
    status, output = run("convert", "csv", tmp_path / "list.csv", tmp_path / "out", "--on-bad-mask", "full")
    assert status == 2 and output.count("\n") == 1, output


@pytest.mark.parametrize("header", ['"pa\nth",pid,camid,split', f'"{"x" * 9_999}\n",pid,camid,split'])
def test_an_odd_header_is_a_short_line(tmp_path: Path, header: str) -> None:
    (tmp_path / "list.csv").write_text(f"{header}\na.png,1,1,train\n")
    status, output = run("convert", "csv", tmp_path / "list.csv", tmp_path / "out")
    assert status == 2 and output.count("\n") == 1 and len(output) < 400 + len(str(tmp_path)), output


def test_a_name_with_a_line_feed_is_one_line(tmp_path: Path) -> None:
    status, output = run("verify", tmp_path / "no\nsuch")
    assert status == 2 and output.count("\n") == 1 and "no\\nsuch" in output, output


# HDF5.


def file_elsewhere(file: Any, tmp_path: Path) -> None:
    file.create_dataset("a", (4,), np.uint8, external=[(str(tmp_path / "private"), 0, 4)])


def virtual(file: Any, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.mat", "w") as other:
        other["a"] = np.frombuffer(b"mine", np.uint8)
    layout = h5py.VirtualLayout((4,), np.uint8)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.mat"), "a", (4,))
    file.create_virtual_dataset("a", layout)


def linked(file: Any, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.mat", "w") as other:
        other["a"] = np.frombuffer(b"mine", np.uint8)
    file["a"] = h5py.ExternalLink(str(tmp_path / "other.mat"), "a")


def linked_softly(file: Any, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    linked(file, tmp_path)
    file.move("a", "b")
    file["a"] = h5py.SoftLink("/b")


def huge(file: Any, tmp_path: Path) -> None:
    file.create_dataset("a", (1 << 40,), np.uint8, chunks=(1 << 10,))  # a few bytes of file


def folder(file: Any, tmp_path: Path) -> None:
    file.create_group("a")


@pytest.mark.parametrize("make", [file_elsewhere, virtual, linked, linked_softly, huge, folder])
@pytest.mark.parametrize("by_reference", [False, True])
def test_a_matlab_file_reads_itself_alone(
    tmp_path: Path, make: Callable[[Any, Path], None], by_reference: bool
) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "private").write_bytes(b"mine")
    with h5py.File(tmp_path / "given.mat", "w") as file:
        make(file, tmp_path)
        # A reference is to an object of the file itself.
        referred = by_reference and make not in (linked, linked_softly)
        if referred:
            file.create_dataset("r", data=np.array([file["a"].ref], h5py.ref_dtype))
    with pytest.raises(ShardError, match=r"given\.mat"), open_hdf5(tmp_path / "given.mat") as opened:
        found = opened[opened["r"][0]] if referred else opened["a"]
        assert found[:].tobytes() != b"mine"


# Checkpoints.

Change = Callable[[dict[str, Any]], object]
CHANGES: dict[str, Change] = {
    "absurd classes": lambda m: m.update(classes=10**9),
    "classes beyond any number": lambda m: m.update(classes=10**40),
    "classes as text": lambda m: m.update(classes="3"),
    "an absurd network": lambda m: m["config"]["model"].update(embedding_dim=10**12),
    "an absurd width": lambda m: m["config"]["model"].update(width=10**9),
    "no weights": lambda m: m["files"].pop("weights.safetensors"),
    "files as a list": lambda m: m.update(files=[1]),
    "a size as text": lambda m: m["files"]["weights.safetensors"].update(bytes="1"),
    "a sum that is none": lambda m: m["files"]["weights.safetensors"].update(sha256="../"),
    "a file outside": lambda m: m["files"].update({"../../precious": {"bytes": 1, "sha256": "0" * 64}}),
    "a file of the system": lambda m: m["files"].update({"/dev/zero": {"bytes": 1, "sha256": "0" * 64}}),
    "steps below 0": lambda m: m.update(step=-1),
    "steps as truth": lambda m: m.update(step=True),
    "no world": lambda m: m.update(world_size=0),
    "changes as text": lambda m: m.update(changes="many"),
    "ranks as text": lambda m: m.update(ranks="all"),
    "a recipe as a list": lambda m: m.update(config=[]),
    "another format": lambda m: m.update(format=["maskreid-checkpoint-1"]),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder as far as it is read before a training loads it. Read only."""
    from safetensors.torch import save_file

    from maskreid_dist.model import build_network

    path = tmp_path_factory.mktemp("saved") / "step_00000001"
    path.mkdir()
    config = load_recipe(write_recipe(path.parent))
    save_file(build_network(config, 0).state_dict(), path / "weights.safetensors")
    data = (path / "weights.safetensors").read_bytes()
    manifest = {
        "format": "maskreid-checkpoint-1",
        "step": 1,
        "world_size": 1,
        "classes": 0,
        "shards_fingerprint": "0" * 64,
        "config": config.model_dump(mode="json"),
        "files": {"weights.safetensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert read_checkpoint(path).step == 1
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_a_lying_checkpoint_manifest_is_one_line(saved: Path, tmp_path: Path, change: str) -> None:
    path = shutil.copytree(saved, tmp_path / saved.name)
    manifest = json.loads((path / "manifest.json").read_text())
    CHANGES[change](manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=str(path)) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5_000, "[]", "null", '"maskreid-checkpoint-1"', "\xff"]
)
def test_no_manifest_at_all_is_one_line(saved: Path, tmp_path: Path, text: str) -> None:
    path = shutil.copytree(saved, tmp_path / saved.name)
    (path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=str(path)) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors"])
def test_a_checkpoint_of_no_files_is_one_line(saved: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = shutil.copytree(saved, tmp_path / saved.name)
    plant(path / name, kind)
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)


# Private data.


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:p@ss@host/path?sig=secret#secret", "https://host/path"),
        ("https://user:p?ss@host/path", "https://host/path"),
        ("https://user:p#ss@host:8/path", "https://host:8/path"),
        ("simplecache::s3://key:secret@bucket/path@home", "simplecache::s3://bucket/path@home"),
        ("/data/who@where?what", "/data/who@where?what"),
    ],
)
def test_no_secret_of_a_url_is_kept(tmp_path: Path, url: str, shown: str) -> None:
    recipe = write_recipe(tmp_path)
    config = load_recipe(recipe, [f"data.shards={url}", f"run.evaluate_shards={url}"])
    dumped = config.model_dump(mode="json")
    assert (config.data.shards, dumped["data"]["shards"], dumped["run"]["evaluate_shards"]) == (
        url,
        shown,
        shown,
    )
    status, output = run("recipe", recipe, "--set", f"data.shards={url}")
    assert status == 0 and shown in output and "secret" not in output and "ss@" not in output


# The network and the program's own folder.


def test_the_store_of_one_process_listens_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    store = open_store(Place(0, 0, 1), 5.0)
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_the_demo_trains_with_its_own_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a launch/train.py and a deepspeed of its own, which must not run."""
    for name in ("launch/train.py", "train.py", "deepspeed/__init__.py", "deepspeed/launcher/runner.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    started: list[tuple[list[str], dict[str, str]]] = []

    def start(
        self: launcher.Launcher, command: list[str], environment: dict[str, str], output: int | None
    ) -> int:
        started.append((command, environment))
        import subprocess

        show = [command[0], "-c", "import deepspeed.launcher as found; print(found.__file__)"]
        where = subprocess.run(show, env=environment, capture_output=True, text=True, check=True).stdout
        assert str(tmp_path) not in where.splitlines()[-1]
        return 0

    monkeypatch.setattr(launcher.Launcher, "start", start)
    launcher.launch_training(Path("recipe.toml"), (), tmp_path, tmp_path / "run", 1)
    ((command, _),) = started
    scripts = [Path(word) for word in command if word.endswith("train.py")]
    assert scripts == [Path(launcher.__file__).resolve().with_name("train.py")] and scripts[0].is_file()
    assert not (tmp_path / "ran").exists()


def test_an_index_that_would_read_a_whole_shard_is_refused(shards: Path) -> None:
    from maskreid_shards import reading

    original = open_shards(shards).split("train").index
    rows = np.array(original)
    entry = open_shards(shards).split("train").entry
    reading._check_records(rows, "index", entry)
    rows["mask_offset"][0] = 0
    with pytest.raises(ShardError, match="record 0: image and mask are not close together"):
        reading._check_records(rows, "index", entry)
