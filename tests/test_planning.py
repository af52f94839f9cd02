"""`maskreid plan-run`: its figures beside what is counted by hand, measured, and saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from maskreid_dist.config import Config
from maskreid_dist.data.batches import recipe_plan
from maskreid_dist.model import build_network
from maskreid_dist.planning.network_cost import NetworkCost, network_cost
from maskreid_dist.planning.run_plan import Rates, run_plan
from maskreid_dist.recipe import load_recipe
from maskreid_dist.training.ema import Ema
from maskreid_shards import ShardStream, StreamPlan, open_shards
from maskreid_shards.manifest import ShardEntry
from nodes import ROOT, run_nodes, write_recipe
from program import run

COUNTED: dict[tuple[str, int, int, int], NetworkCost] = {}
WALKERS = open_shards(ROOT / "shards" / "walkers").split("train")


@pytest.fixture(autouse=True)
def one_count_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests have the same one."""

    def count(config: Config, classes: int) -> NetworkCost:
        key = (repr(config.model), config.data.height, config.data.width, classes)
        if key not in COUNTED:
            COUNTED[key] = network_cost(config, classes)
        return COUNTED[key]

    monkeypatch.setattr("maskreid_dist.planning.run_plan.network_cost", count)


def plan(tmp_path: Path, world: int, *overrides: str, **rates: float) -> dict[str, Any]:
    return run_plan(load_recipe(write_recipe(tmp_path), overrides), WALKERS, world, Rates(**rates))


def test_the_network_is_counted_by_its_shapes(tmp_path: Path) -> None:
    """Beside sums over the convolutions of a real network, and tensors that its graph keeps."""
    config = load_recipe(write_recipe(tmp_path))
    cost = network_cost(config, 10)
    network = build_network(config, 10)
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    flops = 0

    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal flops
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        flops += 2 * output.numel() * weight[0].numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    saved = []
    for rows in (2, 4):
        flops = 0
        kept.clear()
        image = torch.zeros(rows, 3, config.data.height, config.data.width, dtype=torch.uint8)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = network(image, image[:, :1])
        assert cost.forward_flops == flops / rows
        saved.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
        del output
    assert cost.backward_flops == pytest.approx(2 * cost.forward_flops, rel=0.1)
    assert cost.saved_bytes == pytest.approx((saved[1] - saved[0]) / 2, rel=0.02)


def test_by_hand(tmp_path: Path) -> None:
    found = plan(tmp_path, 4, "batch.identities=8", "batch.images=4", "data.workers=2")
    batches = found["batches"]
    assert batches["steps_per_epoch"] == 200 // 8
    assert (batches["images_per_step"], batches["images_per_step_and_rank"]) == (32, 8)
    assert (batches["identities_per_epoch"], batches["epochs"]) == (200, 0.16)
    assert found["traffic"]["gathered_mb"] == pytest.approx(32 * (256 * 4 + 8) * 3 / 4 / 1e6)
    assert found["flops"]["loss_tflop"] == pytest.approx(3 * 2 * 8 * 32 * 256 / 1e12)
    parameters = network_cost(load_recipe(write_recipe(tmp_path)), 0).parameters
    assert found["traffic"]["gradients_mb"] == pytest.approx(2 * 4 * parameters * 3 / 4 / 1e6)
    assert found["memory"]["weights_gb"] == pytest.approx(4 * parameters / 1e9)
    sizes = WALKERS.index["image_length"] + WALKERS.index["mask_length"]
    assert batches["read_per_step_mb"] == pytest.approx(8 * sizes.mean() / 1e6)


def test_more_ranks_and_micro_batches_take_less(tmp_path: Path) -> None:
    large = ("batch.identities=64", "batch.images=4")
    one, four = plan(tmp_path, 1, *large), plan(tmp_path, 4, *large)
    assert one["traffic"] == {"gathered_mb": 0, "gradients_mb": 0}
    assert four["memory"]["activations_gb"] == one["memory"]["activations_gb"] / 4
    assert four["flops"]["loss_tflop"] == one["flops"]["loss_tflop"] / 4
    assert four["time"]["network_ms"] == one["time"]["network_ms"] / 4
    parts = plan(tmp_path, 1, *large, "batch.micro_images=32")
    assert parts["memory"]["activations_gb"] == one["memory"]["activations_gb"] / 8
    assert 1.2 < parts["flops"]["network_tflop"] / one["flops"]["network_tflop"] < 1.4
    memory = plan(tmp_path, 1, *large, "loss.memory=3")
    assert memory["flops"]["loss_tflop"] == pytest.approx(5 * one["flops"]["loss_tflop"])
    split = plan(tmp_path, 4, *large, "engine.zero_stage=1")
    assert split["memory"]["optimizer_gb"] == pytest.approx(four["memory"]["optimizer_gb"] * 2 / 4)


OFFLOADED = [
    # stage, offload; of a rank of 4, in whole weights: weights, gradients, optimizer (two states and a copy
    # of the weights) on the GPU; all of the host
    (1, "none", (1, 1, 3 / 4), 0),
    (1, "optimizer", (1, 1, 0), 3 / 4 + 1 / 4),
    (2, "optimizer", (1, 0, 0), 3 / 4 + 1 / 4),
    (3, "optimizer", (1 / 4, 0, 0), 3 / 4 + 1 / 4),
    (3, "all", (0, 0, 0), 3 / 4 + 1 / 4 + 1 / 4),
]


@pytest.mark.parametrize(("stage", "offload", "on_gpu", "on_host"), OFFLOADED)
def test_what_is_offloaded_is_in_the_host_s_memory(
    tmp_path: Path, stage: int, offload: str, on_gpu: tuple[float, ...], on_host: float
) -> None:
    more = (f"engine.zero_stage={stage}", f"engine.offload={offload}", 'optimizer.name="adamw"')
    large = ("batch.identities=8", *more)
    memory = plan(tmp_path, 4, *large)["memory"]
    whole = plan(tmp_path, 4, "batch.identities=8")["memory"]["weights_gb"]
    found = [memory[f"{name}_gb"] / whole for name in ("weights", "gradients", "optimizer")]
    assert found == pytest.approx(on_gpu) and memory["host_gb"] / whole == pytest.approx(on_host)
    others = sum(memory[f"{name}_gb"] for name in ("activations", "images", "loss", "average"))
    assert memory["total_gb"] == pytest.approx(sum(on_gpu) * whole + others)


def test_an_average_of_the_weights_is_a_copy_on_every_rank(tmp_path: Path) -> None:
    cost = network_cost(load_recipe(write_recipe(tmp_path)), 0)
    for stage in (0, 2):
        without = plan(tmp_path, 2, f"engine.zero_stage={stage}")["memory"]
        memory = plan(tmp_path, 2, f"engine.zero_stage={stage}", "optimizer.ema=0.9")["memory"]
        kept = Ema(build_network(load_recipe(write_recipe(tmp_path)), 0), 0.9).average
        assert memory["average_gb"] * 1e9 == pytest.approx(sum(tensor.nbytes for tensor in kept))
        assert memory["average_gb"] == pytest.approx(4 * (cost.parameters + cost.buffers) / 1e9)
        assert without["average_gb"] == 0
        assert memory["total_gb"] == pytest.approx(without["total_gb"] + memory["average_gb"])


def test_a_stream_reads_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the bytes that two ranks with two readers each take from the store in a pass."""
    streamed = ("data.access=stream", "data.workers=2")
    config = load_recipe(write_recipe(tmp_path), streamed)
    found = plan(tmp_path, 2, *streamed)
    stream = recipe_plan(WALKERS, config, 2)
    assert isinstance(stream, StreamPlan) and stream.steps_per_epoch == stream.steps_per_pass
    read: list[int] = []
    fetch = type(WALKERS.store).fetch

    def counted(self: Any, shard: ShardEntry, start: int, length: int, key: str) -> bytes:
        read.append(length)
        return fetch(self, shard, start, length, key)

    monkeypatch.setattr(type(WALKERS.store), "fetch", counted)
    for rank in range(2):
        for reader in range(2):
            samples = stream.to_read(0, reader, rank)
            ShardStream(WALKERS, samples).read_many(samples)
    assert sum(read) == sum(shard.bytes for shard in WALKERS.entry.shards)  # no shard is left out here
    batches = found["batches"]
    assert batches["read_per_epoch_gb"] * 1e9 == pytest.approx(sum(read) / 2)
    assert batches["read_per_step_mb"] * 1e6 == pytest.approx(sum(read) / 2 / stream.steps_per_epoch)
    # A store so slow that its bytes bound a step: an index takes the drawn pairs alone.
    slow = {"read_mb_s": 1e-3}
    times = [plan(tmp_path, 2, *of, "data.workers=2", **slow)["time"] for of in ((), streamed)]
    assert [time["bound_by"] for time in times] == ["data", "data"]
    drawn = plan(tmp_path, 2, "data.workers=2")["batches"]["read_per_step_mb"]
    assert times[1]["data_ms"] / times[0]["data_ms"] == pytest.approx(batches["read_per_step_mb"] / drawn)
    assert times[1]["data_ms"] > 2 * times[0]["data_ms"]


def test_what_bounds_a_step(tmp_path: Path) -> None:
    workers = ("data.workers=2",)
    slow_data = plan(tmp_path, 2, *workers, decode_pairs_s=1.0)["time"]
    assert (slow_data["bound_by"], slow_data["step_ms"]) == ("data", slow_data["data_ms"])
    assert slow_data["data_ms"] == pytest.approx(1000 * 4 / 2)
    assert plan(tmp_path, 2, *workers, network_gb_s=1e-3)["time"]["bound_by"] == "gradients"
    assert plan(tmp_path, 2, *workers, tflops=1e-3)["time"]["bound_by"] == "network"
    after = plan(tmp_path, 2, "data.workers=0")["time"]
    parts = [after[f"{name}_ms"] for name in ("network", "loss", "gather", "gradients", "data")]
    assert after["step_ms"] == pytest.approx(sum(parts))


@pytest.mark.parametrize(
    ("world", "overrides", "words"),
    [
        (1, ("batch.identities=300",), "use fewer identities a batch"),
        (8, ("batch.sampling=paper",), "use fewer identities a batch: at most 3 ranks, each has 55"),
        (3, (), "cannot be shared equally by 3 ranks"),
        (2, ("engine.world=4",), "the recipe expects engine.world = 4, and --world is 2"),
        (1, ("batch.images=1",), "batch.identities and batch.images must be at least 2"),
    ],
)
def test_an_impossible_recipe_is_one_line(
    tmp_path: Path, world: int, overrides: tuple[str, ...], words: str
) -> None:
    settings = [word for override in overrides for word in ("--set", override)]
    status, output = run("plan-run", write_recipe(tmp_path), "--world", world, *settings)
    assert status == 2
    assert words in output and output.count("\n") == 1


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    status, output = run("plan-run", write_recipe(tmp_path), "--memory-gb", "0.001")
    assert status == 2
    assert "a rank needs about" in output and "batch.micro_images" in output and output.count("\n") == 1


def test_what_is_printed(tmp_path: Path) -> None:
    status, output = run("plan-run", write_recipe(tmp_path), "--world", 2, "--tflops", 0.5)
    assert status == 0
    for words in (
        "tiny on 2 ranks",
        "identities per epoch",
        "predicted",
        "500 GFLOP/s",
        "10 GB/s",
        "checkpoint",
    ):
        assert words in output
    status, output = run("plan-run", write_recipe(tmp_path), "--world", 2, "--json")
    assert status == 0 and json.loads(output)["assumed"]["tflops"] == 10.0


@pytest.mark.parametrize("ema", [0, 0.9])
def test_a_checkpoint_has_the_size(tmp_path: Path, ema: float) -> None:
    """An average stands in place of the weights for inference."""
    settings = ("engine.zero_stage=1", "model.width=0.5", f"optimizer.ema={ema}")
    arguments = [word for key in (*settings, "optimizer.steps=1") for word in ("--set", key)]
    (node,) = run_nodes([[write_recipe(tmp_path), "--runs", tmp_path, *arguments]])
    assert node.status == 0, node.output
    checkpoint = tmp_path / "tiny" / "checkpoints" / "step_00000001"
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    predicted = plan(tmp_path, 1, *settings)["checkpoint"]["size_mb"]
    assert size / 1e6 == pytest.approx(predicted, rel=0.03)
