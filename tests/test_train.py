"""Training end to end, in real processes: the three launchers, stopping, resuming, and what a bad start
says."""

import json
import os
import shutil
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from market import write_market, write_pair
from maskreid_dist.cli.app import app
from maskreid_dist.data.batches import Batch, make_plan, training_loader
from maskreid_dist.errors import CheckpointError
from maskreid_dist.model import build_network
from maskreid_dist.model.checkpoint import (
    find_checkpoint,
    finished_checkpoints,
    load_weights,
    read_checkpoint,
)
from maskreid_dist.recipe import load_recipe
from maskreid_dist.run_directory import PHASES
from maskreid_dist.training.environment import free_port
from maskreid_dist.training.loop import dropout_seed, identity_classes
from maskreid_dist.training.resuming import check_continues
from maskreid_shards import convert_market1501, open_shards
from nodes import run_programs, variables_of_ranks

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
FORKED = {"one": 1, "two": 2}
STEPS = 6
RECIPE = f"""
name = "tiny"
seed = 5
[data]
shards = "{ROOT}/shards/walkers"
height = 36
width = 14
resize_height = 40
resize_width = 16
workers = 0
[batch]
identities = 6
images = 2
[model]
width = 0.125
[loss]
identity_weight = 0.1
[optimizer]
name = "adamw"
lr = 0.001
steps = {STEPS}
schedule = "linear"
[run]
log_every = 1
checkpoint_every = 3
"""


def launcher(kind: str) -> list[str]:
    script = str(ROOT / "launch" / "train.py")
    if kind == "python":
        return [sys.executable, script]
    if kind == "torchrun":
        return [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port()), script]
    return [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port()), script]


def train(kind: str, recipe: Path, runs: Path, *arguments: str, status: int = 0) -> str:
    """By a launcher, or as `one` or `two` ranks without any; what all have said."""
    if kind in FORKED:
        one_machine = [{**rank, "LOCAL_RANK": rank["RANK"]} for rank in variables_of_ranks(FORKED[kind])]
        variables = one_machine if kind == "two" else [{}]
        own: list[str | Path] = [recipe, "--runs", runs, *arguments]
        ended = run_programs(ROOT / "launch" / "train.py", [own] * FORKED[kind], variables)
        output = "".join(rank.output for rank in ended)
        assert [rank.status for rank in ended] == [status] * FORKED[kind], output[-4000:]
        return output
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "shards"))
    command = [*launcher(kind), str(recipe), "--runs", str(runs), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == status, output[-4000:]
    return output


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {line["step"]: line["loss"] for line in lines}


def losses_of_tensorboard(run: Path) -> dict[int, float]:
    """The points that TensorBoard shows, those that a resumed training wrote again purged."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {point.step: point.value for point in events.Scalars("loss")}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def straight(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nobody disturbs."""
    runs = tmp_path_factory.mktemp("straight")
    before = set(Path("/dev/shm").glob("deepspeed_*"))
    train("deepspeed", recipe, runs)
    # DeepSpeed's own all-reduce would leave 69 MB a rank.
    assert set(Path("/dev/shm").glob("deepspeed_*")) <= before
    return runs / "tiny"


def test_deepspeed_run_leaves_everything(straight: Path) -> None:
    assert len(losses(straight)) == STEPS
    line = json.loads((straight / "metrics.jsonl").read_text().splitlines()[-1])
    for key in (
        "loss",
        "loss_above_floor",
        "active_negative_fraction",
        "images_per_second",
        "data_wait_share",
        "lr",
    ):
        assert key in line
    assert 0 <= line["active_negative_fraction"] <= 1
    assert 0 <= line["data_wait_share"] <= 1
    assert [path.name for path in finished_checkpoints(straight / "checkpoints")] == [
        "step_00000003",
        "step_00000006",
    ]
    assert json.loads((straight / "deepspeed.json").read_text())["gradient_clipping"] == 0.0
    assert list((straight / "tensorboard").iterdir())


def test_the_variables_of_srun_make_ranks(recipe: Path, straight: Path, tmp_path: Path) -> None:
    """Two processes that srun could have started: the losses are those of the deepspeed launcher."""
    common = {"SLURM_NTASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    variables = [{**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in ("0", "1")]
    ranks = run_programs(ROOT / "launch" / "train.py", [[recipe, "--runs", tmp_path]] * 2, variables)
    assert [rank.status for rank in ranks] == [0, 0], ranks[0].output
    assert losses(tmp_path / "tiny") == losses(straight)


def test_stopping_and_resuming_gives_the_same_losses_and_weights(
    straight: Path, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    run.mkdir()
    (run / "stop").touch()
    os.utime(run / "stop", (2**32, 2**32))  # of after its start: an older one is removed
    train("deepspeed", recipe, tmp_path, status=75)
    assert len(losses(run)) == 1
    assert not (run / "stop").exists()
    (run / "stop").touch()
    os.utime(run / "stop", (2**30, 2**30))
    output = train("two", recipe, tmp_path, "--resume")
    assert "continuing from" in output
    assert f"{run / 'stop'}: removed, it is of " in output
    assert losses_of_tensorboard(run) == {step: pytest.approx(loss) for step, loss in losses(run).items()}
    assert losses(run) == losses(straight)
    resumed, undisturbed = (
        load_file(r / "checkpoints" / "step_00000006" / "weights.safetensors") for r in (run, straight)
    )
    for name, value in undisturbed.items():
        # Averaged over ranks at each save: the stop made one more, rounded in other places.
        if "running_" in name:
            assert torch.allclose(resumed[name], value, rtol=1e-5, atol=1e-7), name
        else:
            assert torch.equal(resumed[name], value), name


def test_torchrun_with_zero_1_trains_the_same(straight: Path, recipe: Path, tmp_path: Path) -> None:
    train("torchrun", recipe, tmp_path, "--set", "engine.zero_stage=1")
    assert list(losses(tmp_path / "tiny").values()) == pytest.approx(
        list(losses(straight).values()), rel=1e-4
    )
    # And goes on with one rank, at another stage.
    more = ("--set", "engine.zero_stage=2", "--set", f"optimizer.steps={STEPS + 1}")
    output = train("one", recipe, tmp_path, "--resume", *more)
    assert "step_00000006: saved by 2 rank(s) with ZeRO stage 1, divided anew for 1 with stage 2" in output
    assert len(losses(tmp_path / "tiny")) == STEPS + 1


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of plain `python`."""
    runs = tmp_path_factory.mktemp("alone")
    train("python", recipe, runs)
    return runs / "tiny"


def test_plain_python_starts_from_the_loss_computed_by_hand(alone: Path, recipe: Path) -> None:
    config = load_recipe(recipe)
    split = open_shards(config.data.shards).split("train")
    classes = identity_classes(split)
    torch.manual_seed(config.seed)
    network = build_network(config, len(classes))
    batch = next(
        iter(
            training_loader(
                split, make_plan(split, config.batch, config.seed, 1), config, 0, 0, 1, torch.device("cpu")
            )
        )
    )
    assert isinstance(batch, Batch)
    torch.manual_seed(dropout_seed(config.seed, 0, 0))
    output = network(batch.image_B3HW, batch.mask_B1HW)
    labels = torch.tensor(
        [split.identities[split.identities > 0].tolist().index(pid) for pid in batch.pids_B]
    )
    similarity = (output.embedding_BD @ output.embedding_BD.T).double()
    anchors = []
    for k in range(len(labels)):
        positives = [i for i in range(len(labels)) if i != k and labels[i] == labels[k]]
        negatives = [j for j in range(len(labels)) if labels[j] != labels[k]]
        hardest = min(similarity[k, i] for i in positives)
        pushed = torch.stack([(similarity[k, j] - hardest + 0.15).clamp(min=0) for j in negatives])
        pulled = torch.stack([(similarity[k, i] - 1) ** 2 for i in positives])
        anchors.append(torch.log1p(pushed.exp().sum()) + pulled.mean())
    by_hand = torch.stack(anchors).mean() + 0.1 * torch.nn.functional.cross_entropy(output.logits_BC, labels)
    assert losses(alone)[1] == pytest.approx(by_hand.item(), rel=1e-4)
    assert len(losses(alone)) == STEPS


def test_checkpoint_loads_into_the_network_of_its_recipe(alone: Path) -> None:
    checkpoint, passed_over = find_checkpoint(alone)
    assert (checkpoint.step, checkpoint.world_size, checkpoint.classes, passed_over) == (6, 1, 200, [])
    network = build_network(checkpoint.config, checkpoint.classes)
    load_weights(network, checkpoint)
    saved = load_file(checkpoint.path / "weights.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: does not match"):
        load_weights(build_network(checkpoint.config, 0), checkpoint)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_loudly(alone: Path, tmp_path: Path, damage: str) -> None:
    run = shutil.copytree(alone, tmp_path / "run")
    newest = run / "checkpoints" / "step_00000006"
    victim = newest / "weights.safetensors"
    data = victim.read_bytes()
    if damage == "truncate":
        victim.write_bytes(data[:-100])
    elif damage == "flip":
        victim.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif damage == "remove":
        victim.unlink()
    else:
        (newest / "manifest.json").write_text("{}")
    checkpoint, passed_over = find_checkpoint(run)
    assert checkpoint.step == 3
    assert len(passed_over) == 1
    assert ("manifest.json" if damage == "manifest" else "weights.safetensors") in passed_over[0]
    with pytest.raises(CheckpointError):
        read_checkpoint(newest)


def test_an_unfinished_save_is_no_checkpoint(alone: Path, tmp_path: Path) -> None:
    run = shutil.copytree(alone, tmp_path / "run")
    (run / "checkpoints" / "step_00000006").rename(run / "checkpoints" / "step_00000006.partial")
    assert find_checkpoint(run)[0].step == 3
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.width=0.25", "model.width = 0.125, the recipe says 0.25"),
        ("batch.images=4", "batch.images = 2, the recipe says 4"),
        ("seed=6", "seed = 5, the recipe says 6"),
        ("optimizer.steps=5", "optimizer.steps = 6, the recipe says 5"),
        ("engine.autocast=bfloat16", "engine.autocast"),
    ],
)
def test_a_checkpoint_that_does_not_match_the_recipe(
    alone: Path, recipe: Path, override: str, words: str
) -> None:
    checkpoint, _ = find_checkpoint(alone)
    fingerprint = checkpoint.shards_fingerprint
    check_continues(checkpoint, load_recipe(recipe), fingerprint, 1)
    check_continues(checkpoint, load_recipe(recipe, ["run.log_every=7"]), fingerprint, 1)
    with pytest.raises(CheckpointError, match=words):
        check_continues(checkpoint, load_recipe(recipe, [override]), fingerprint, 1)
    check_continues(
        checkpoint, load_recipe(recipe, ["optimizer.lr=0.1", "optimizer.steps=60"]), fingerprint, 1
    )
    both = load_recipe(recipe, [override, "loss.margin=0.9"])
    with pytest.raises(CheckpointError, match=r"loss\.margin = 0\.15, the recipe says 0\.9") as caught:
        check_continues(checkpoint, both, fingerprint, 1)
    assert words in str(caught.value)
    with pytest.raises(CheckpointError, match="other shards"):
        check_continues(checkpoint, load_recipe(recipe), "0" * 64, 1)
    for ranks in (1, 2):  # either is divided anew
        check_continues(checkpoint, load_recipe(recipe, ["engine.zero_stage=1"]), fingerprint, ranks)
    assert fingerprint == open_shards(ROOT / "shards" / "walkers").split("train").fingerprint


def test_bad_starts_are_one_line_and_status_2(alone: Path, recipe: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(alone, tmp_path / "tiny").parent
    for arguments, words in (
        ((), "holds checkpoints; continue with --resume"),
        (("--resume", "--set", "model.width=0.25"), "model.width = 0.125, the recipe says 0.25"),
        (("--set", "name=new", "--set", "batch.identities=300"), "use fewer identities a batch"),
    ):
        output = train("one", recipe, runs, *arguments, status=2)
        assert words in output
        assert "Traceback" not in output
    if not torch.cuda.is_available():
        output = train("one", recipe, runs, "--set", "name=new", "--set", "data.decoder=gpu", status=2)
        assert 'torch finds no GPU here; use "torchvision"' in output
        assert "Traceback" not in output
    output = train("one", recipe, recipe, status=2)  # the recipe's own file is no directory
    assert f"{recipe / 'tiny'}: cannot be written" in output
    assert "Traceback" not in output
    output = train("two", recipe, runs, "--set", "name=odd", "--set", "batch.identities=7", status=2)
    assert "7 identities (P) a global batch cannot be shared equally by 2 ranks" in output
    assert "Traceback" not in output
    assert not (runs / "odd").exists()
    assert not (runs / "new").exists()


def test_a_bad_sample_of_one_rank_stops_all_with_one_line(recipe: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(ROOT / "shards" / "walkers", tmp_path / "walkers")
    split = open_shards(shards).split("train")
    config = load_recipe(recipe)
    row = split.index[int(make_plan(split, config.batch, config.seed, 2).rank_batch(0, 1, 1, 2)[0])]
    shard = Path(split.urls()[int(row["shard"])])
    data = bytearray(shard.read_bytes())
    data[int(row["image_offset"]) + 50] ^= 4
    shard.write_bytes(data)
    output = train("deepspeed", recipe, tmp_path / "runs", "--set", f"data.shards={shards}", status=2)
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if line.startswith("maskreid: error:")]
    assert len(errors) == 1
    assert row["key"].decode() in errors[0]
    assert str(shard) in errors[0]


def test_a_diverging_loss_is_said(recipe: Path, tmp_path: Path) -> None:
    output = train(
        "one", recipe, tmp_path, "--set", "optimizer.lr=1e38", "--set", "optimizer.name=sgd", status=2
    )
    assert "lower optimizer.lr" in output
    assert "Traceback" not in output


def test_a_rejected_resume_writes_nothing(alone: Path, recipe: Path, tmp_path: Path) -> None:
    run = shutil.copytree(alone, tmp_path / "tiny")
    ends = ("lock", "status.json")  # who trained last, and how that ended
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name not in ends}
    train("one", recipe, tmp_path, "--resume", "--set", "optimizer.gradient_clipping=1.0", status=2)
    assert {
        path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name not in ends
    } == before


def test_evaluate_ranks_a_gallery(alone: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "figures.json", tmp_path / "report.html"
    arguments = [
        "evaluate",
        alone,
        ROOT / "shards" / "walkers",
        "--output",
        out,
        "--report",
        report,
        "--ap",
        "trapezoid",
    ]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert "657 valid queries, 0 skipped" in result.output
    figures = json.loads(out.read_text())
    assert f"{figures['mAP_hits']:.2f}" in result.output
    assert "tiny, step 6" in report.read_text()
    arguments[arguments.index(report)] = out / "report.html"  # below a file
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert str(out) in result.output


def test_evaluate_by_other_protocols(alone: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    convert_market1501(write_market(tmp_path / "src"), shards)
    command = ["evaluate", str(alone), str(shards)]
    flags = ["--intervals", "--multiple-query", "--single-shot", "3", "--camera-pairs"]
    result = CliRunner().invoke(app, [*command, *flags])
    assert result.exit_code == 0, result.output
    for words in (
        "95 % intervals",
        "multiple query, ",
        "single gallery shot, 3 draws: Rank-1",
        "camera 1 to camera 2",
    ):
        assert words in result.output
    report, figures = tmp_path / "none.html", tmp_path / "none.json"
    flags = ["--cameras", "none", "--report", str(report), "--output", str(figures)]
    result = CliRunner().invoke(app, [*command, *flags])
    assert result.exit_code == 0, result.output
    assert "without cameras: only the query's own image was left out" in result.output
    assert "the query&#39;s own image, by its key" in report.read_text().replace("&#x27;", "&#39;")
    assert json.loads(figures.read_text())["cameras"] == "none"
    result = CliRunner().invoke(app, [*command, "--cameras", "none", "--camera-pairs"])
    assert result.exit_code == 2 and result.output.count("\n") == 1
    flags = ["--rerank", "--expand-queries", "3", "--report", str(report), "--output", str(figures)]
    result = CliRunner().invoke(app, [*command, *flags])
    assert result.exit_code == 0, result.output
    said = json.loads(figures.read_text())
    for key, words in (
        ("reranked", "re-ranked 20, 6, 0.3"),
        ("expanded", "queries + 3 nearest"),
        ("", "tiny, step"),
    ):
        values = said[key] if key else said
        assert words in report.read_text() and f"{values['mAP_hits']:.2f}" in result.output
    assert said["expanded_reranked"] != said["reranked"]
    flags = ["--verification", "--distractors", str(shards), "--output", str(figures)]
    result = CliRunner().invoke(app, [*command, *flags])
    assert result.exit_code == 0, result.output
    assert "pairs: true match rate at a false match rate of 10 %: " in result.output
    ((size, grew),) = json.loads(figures.read_text())["gallery_size"].items()
    assert f"gallery of {size} images: mAP {grew['mAP_hits']:.2f}" in result.output
    for flags, words in (
        (["--sizes", "9k"], "--distractors"),
        (["--sizes", "many", "--distractors", "x"], "20k"),
    ):
        result = CliRunner().invoke(app, [*command, *flags])
        assert result.exit_code == 2 and result.output.count("\n") == 1 and words in result.output
    result = CliRunner().invoke(app, [*command, "--rerank", "--rerank-weight", "3"])
    assert result.exit_code == 2 and result.output.count("\n") == 1 and "weight" in result.output


def test_a_single_camera_says_why_no_query_is_valid(alone: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    convert_market1501(write_market(tmp_path / "src", cameras=(1, 1, 1)), shards)
    result = CliRunner().invoke(app, ["evaluate", str(alone), str(shards)])
    assert result.exit_code == 2
    assert "camera 1" in result.output
    assert result.output.count("\n") == 1
    result = CliRunner().invoke(app, ["evaluate", str(alone), str(shards), "--cameras", "none"])
    assert result.exit_code == 0


def test_without_cameras_and_other_images_no_query_is_valid(alone: Path, tmp_path: Path) -> None:
    for split in ("train", "query", "gallery"):
        write_pair(tmp_path / "src", split, "0200_c1s1_000001_01", 1)
    shards = tmp_path / "shards"
    convert_market1501(tmp_path / "src", shards)
    result = CliRunner().invoke(app, ["evaluate", str(alone), str(shards), "--cameras", "none"])
    assert result.exit_code == 2
    assert "no other image of any query's person" in result.output
    assert result.output.count("\n") == 1


def test_resuming_what_holds_nothing_says_so_and_the_manifest_says_where_it_comes_from(
    recipe: Path, tmp_path: Path
) -> None:
    arguments = ("--resume", "--set", "optimizer.steps=2", "--set", "run.log_every=2")
    output = train("one", recipe, tmp_path, *arguments)
    run = tmp_path / "tiny"
    assert f"{run}: holds no checkpoint, so --resume starts from the beginning" in output
    assert f"run directory: {run}" in output
    (checkpoint,) = finished_checkpoints(run / "checkpoints")
    origin = json.loads((checkpoint / "manifest.json").read_text())["origin"]
    assert origin["command"].split()[1:] == [str(recipe), "--runs", str(tmp_path), *arguments]
    assert origin["hosts"] == [f"{socket.gethostname()}: 0"]
    assert origin["versions"]["torch"] == torch.__version__
    assert origin == {k: v for k, v in json.loads((run / "run.json").read_text()).items() if k != "config"}
    (line,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert datetime.fromisoformat(line["time"]) >= datetime.fromisoformat(origin["started"])
    phases = [line[f"{name}_ms"] for name in PHASES]
    assert sum(phases) == pytest.approx(line["step_ms"])
    assert all(line[f"{name}_ms"] > 0 for name in ("data", "forward", "loss", "backward", "optimizer"))
    assert "step 2/2: loss" in output and " ms a step (" in output
