"""A checkpoint for others: the card's YAML as the Hub reads it, the folder, what is not told."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from checkpoints import write_run
from maskreid_dist.evaluation.model_card import METRICS, Measured, model_card
from maskreid_dist.model.checkpoint import find_checkpoint, read_checkpoint
from maskreid_dist.training.preparing import data_facts
from maskreid_shards import open_shards
from program import run

ORIGIN = {
    "command": "train /home/me/recipe.toml",
    "hosts": ["secret-host: 0"],
    "commit": "abc",
    "versions": {"torch": "2"},
}


def spoil_manifest(folder: Path, **values: object) -> Path:
    """Set keys of the run's checkpoint's manifest."""
    (path,) = folder.glob("checkpoints/*/manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def front_matter(card: str) -> dict[str, object]:
    start, text, _ = card.split("---\n", 2)
    assert start == ""
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def test_the_card_is_what_the_manifest_says(converted: Path, tmp_path: Path) -> None:
    maker = {"model": "pose", "weights_sha256": "d" * 64, "licence": "Apache-2.0 | CC-BY"}
    data = {**data_facts(open_shards(converted)), "mask_maker": maker}
    folder = spoil_manifest(write_run(tmp_path / "demo", origin=ORIGIN), data=data)
    figures = {key: number + 0.5 for number, key in enumerate(METRICS)}
    measured = Measured("market: 'odd'", figures, 2, 12)
    card = model_card(find_checkpoint(folder)[0], name="demo", license_id="cc0-1.0", measured=measured)
    found = front_matter(card)
    assert found["license"] == "cc0-1.0" and "person-re-identification" in str(found["tags"])
    expected = [{"type": key, "name": name, "value": figures[key]} for key, name in METRICS.items()]
    assert found["model-index"] == [
        {
            "name": "demo",
            "results": [
                {
                    "task": {"type": "image-retrieval", "name": "Person re-identification"},
                    "dataset": {"type": "market: 'odd'", "name": "market: 'odd'"},
                    "metrics": expected,
                }
            ],
        }
    ]
    train = open_shards(converted).split("train")
    persons = len({int(pid) for pid in train.pids})
    name = open_shards(converted).manifest.dataset
    assert f"{name} (layout market1501), {len(train)} images of {persons} persons in 3 cameras" in card
    assert "| masks by | model pose, weights_sha256" in card and "Apache-2.0 \\| CC-BY |" in card
    assert "Mask network: Apache-2.0 | CC-BY." in card and "| commit | abc |" in card
    assert "secret-host" not in card and "/home/me" not in card


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    checkpoint, _ = find_checkpoint(write_run(tmp_path / "demo"))
    card = model_card(checkpoint, name="demo")
    found = front_matter(card)
    assert "model-index" not in found and found["license"] == "other"
    assert "Not measured for this card." in card and "Weights: not stated" in card
    assert "more is not recorded" in card and "Mask network: not recorded" in card


def test_a_dry_run_sends_nothing_and_its_folder_is_a_checkpoint(converted: Path, tmp_path: Path) -> None:
    folder, out = write_run(tmp_path / "demo", origin=ORIGIN), tmp_path / "hub"
    command = ["push", folder, "me/walkers-small", "--dry-run", "--shards", converted, "--output", out]
    command += ["--data-license", "CC0, rendered"]
    status, said = run(*command)
    assert status == 0, said
    assert "- Training images: CC0, rendered." in said
    assert "nothing was sent to me/walkers-small" in said and "model-index" in said
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "manifest.json",
        "weights.safetensors",
    ]
    text = (out / "manifest.json").read_text()
    assert not any(word in text for word in ("secret-host", "/home/me", str(tmp_path), "recipe.toml"))
    assert read_checkpoint(out).weights_sha256 == find_checkpoint(folder)[0].weights_sha256
    status, said = run("evaluate", out, converted, "--output", tmp_path / "figures.json")
    assert status == 0, said
    figures = json.loads((tmp_path / "figures.json").read_text())
    index = front_matter((out / "README.md").read_text())["model-index"]
    assert f"'mAP_hits', 'name': 'mAP (AP by hits)', 'value': {figures['mAP_hits']}" in str(index)
    # Again into the same folder, a wrong name, no package: a line each.
    for arguments, words in (
        (command, "is there already"),
        (["push", folder, "walkers", "--dry-run"], "OWNER/NAME"),
        (["push", folder, "me/../x", "--dry-run"], "OWNER/NAME"),
        (["push", tmp_path / "none", "me/x", "--dry-run"], "no usable checkpoint"),
    ):
        status, said = run(*arguments)
        assert status == 2 and words in said, said


def test_a_push_is_the_hubs_own_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in of huggingface_hub's two calls; the Hub itself was not tried."""
    calls: list[object] = []

    class HfApi:
        def create_repo(self, **options: object) -> None:
            calls.append(options)

        def upload_folder(self, *, repo_id: str, folder_path: str, repo_type: str) -> None:
            calls.append((repo_id, repo_type, sorted(path.name for path in Path(folder_path).iterdir())))

    folder = write_run(tmp_path / "demo")
    monkeypatch.setattr("maskreid_dist.cli.push.find_spec", lambda name: None)
    status, said = run("push", folder, "me/small")
    assert status == 2 and "pip install huggingface_hub" in said
    monkeypatch.setattr("maskreid_dist.cli.push.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=HfApi))
    status, said = run("push", folder, "me/small")
    assert status == 0 and "sent to me/small" in said
    assert calls == [
        {"repo_id": "me/small", "repo_type": "model", "exist_ok": True},
        ("me/small", "model", ["README.md", "manifest.json", "weights.safetensors"]),
    ]


def test_a_card_beside_an_exported_network(tmp_path: Path) -> None:
    folder, card = write_run(tmp_path / "demo"), tmp_path / "card.md"
    status, said = run("export", folder, tmp_path / "demo.pt2", "--card", card)
    assert status == 0, said
    assert front_matter(card.read_text())["library_name"] == "maskreid_dist"
