"""loss.memory: the cross-batch memory, against loops over lists; over ranks, saved and loaded; a run that is
resumed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from gloo import run_ranks
from maskreid_dist.config import LossConfig
from maskreid_dist.errors import CheckpointError, RecipeError
from maskreid_dist.model import Output
from maskreid_dist.recipe import validate
from maskreid_dist.training.memory import MEMORY, Memory, own_part, save_memory, start_memory, whole_memory
from maskreid_dist.training.objective import objective
from test_train import RECIPE, losses, train

MARGIN, PULL = 0.2, 1.5
LABELS = torch.tensor([0, 0, 1, 1, 2, 3])  # the last two have no positive in their batch


def batch(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return F.normalize(torch.randn(6, 5, generator=generator, dtype=torch.float64), dim=1)


def of_anchors(anchors: list[tuple[Tensor, int]], others: Any) -> Tensor:
    """Eq. 5 by its words. others: an anchor's number -> its candidates."""
    values = []
    for number, (anchor, label) in enumerate(anchors):
        pairs = others(number)
        positives = [anchor @ row for row, other in pairs if other == label]
        negatives = [anchor @ row for row, other in pairs if other != label]
        if positives and negatives:
            pushed = sum((n - min(positives) + MARGIN).clamp(min=0).exp() for n in negatives)
            pulled = sum((p - 1) ** 2 for p in positives)
            values.append(torch.log1p(torch.as_tensor(pushed)) + PULL / (2 * len(positives)) * pulled)
    return torch.stack(values).mean()


def test_steps_against_loops() -> None:
    """A memory of two steps that starts at the second: values and gradients of five."""
    config = LossConfig(margin=MARGIN, pull=PULL, memory=2, memory_weight=0.7, memory_start=1)
    memory = Memory(config)
    held: list[list[tuple[Tensor, int]]] = []
    for step in range(5):
        rows, slow_rows = (batch(step).requires_grad_() for _ in range(2))
        labels = (LABELS + step) % 4
        loss, scalars = objective(Output(rows, None), labels, config, None, memory.at(step))
        anchors = list(zip(F.normalize(slow_rows, dim=1), labels.tolist(), strict=True))
        slow = of_anchors(anchors, lambda k, rows=anchors: rows[:k] + rows[k + 1 :])
        now = [(row.detach().float().double(), label) for row, label in anchors]
        if step >= 1:
            past = [pair for kept in held[-2:] for pair in kept]
            of_memory = of_anchors(anchors, lambda k, rows=[*now, *past]: rows)
            slow = slow + 0.7 * of_memory
            assert torch.allclose(scalars["memory_loss"], of_memory, atol=1e-6)
        else:
            assert scalars["memory_loss"] == 0
        assert torch.allclose(loss, slow, atol=1e-6), step
        (gradient,), (expected,) = (torch.autograd.grad(loss, rows), torch.autograd.grad(slow, slow_rows))
        assert torch.allclose(gradient, expected, atol=1e-6), step
        memory.keep(rows, labels)
        held.append(now)
        assert not any(kept.embedding_BD.requires_grad for kept in memory.past)


@pytest.mark.parametrize(
    "name", ["ranking", "batch_hard", "n_pair", "all_pairs", "circle", "supervised_contrastive"]
)
def test_every_loss_of_pairs_takes_a_memory(name: Any) -> None:
    config = LossConfig.model_validate({"name": name, "memory": 3})
    memory = Memory(config)
    memory.keep(batch(0), LABELS)
    rows = batch(1).requires_grad_()
    with_past, _ = objective(Output(rows, None), LABELS, config, None, memory.at(1))
    alone, _ = objective(Output(rows, None), LABELS, config, None)
    (gradient,) = torch.autograd.grad(with_past - alone, rows)
    assert with_past > alone and gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "softmax", "memory": 4}, "softmax loss compares no embeddings"),
        ({"backend": "dense", "memory": 4}, "dense backend takes no candidates beside the batch"),
        ({"memory_start": 100}, r"set loss\.memory, in steps"),
        ({"memory_weight": 0.5}, r"set loss\.memory, in steps"),
        ({"memory": -1}, r"loss\.memory"),
    ],
)
def test_recipes_without_a_memory_to_speak_of(section: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        validate({"name": "t", "data": {"shards": "s"}, "loss": section}, "test")


def world_of(rank: int, world: int) -> Any:
    control = dist.group.WORLD if dist.is_initialized() else None
    return SimpleNamespace(rank=rank, size=world, control=control, device=torch.device("cpu"))


def kept_by(rank: int, world: int) -> Memory:
    """Six rows a step, shared unequally by two ranks; in step 2 rank 0 has none."""
    memory = Memory(LossConfig(memory=3))
    for step in range(4):
        cut = 0 if step == 2 else step + 1
        rows = slice(None) if world == 1 else slice(0, cut) if rank == 0 else slice(cut, None)
        memory.keep(batch(step)[rows], (LABELS + 10 * step)[rows])
    return memory


def save_on_two_ranks(rank: int, world: int, folder: str) -> None:
    memory = kept_by(rank, world)
    whole = whole_memory(memory, 5, world_of(rank, world))
    assert torch.equal(whole["rows"], torch.tensor([[2, 0, 4], [4, 6, 2]]))
    if rank == 0:
        save_memory(whole, Path(folder))
    dist.barrier()
    checkpoint: Any = SimpleNamespace(path=Path(folder))
    again = start_memory(LossConfig(memory=3), checkpoint, world_of(rank, world))
    assert again
    for kept, loaded in zip(memory.past, again.past, strict=True):
        assert torch.equal(kept.embedding_BD, loaded.embedding_BD)
        assert torch.equal(kept.labels_B, loaded.labels_B)


def test_a_memory_of_two_ranks_is_saved_and_shared_by_any_number(tmp_path: Path) -> None:
    run_ranks(save_on_two_ranks, 2, tmp_path, str(tmp_path))
    whole, alone = load_file(tmp_path / MEMORY), kept_by(0, 1)
    for world in (1, 3, 4):
        parts = [own_part(whole, rank, world) for rank in range(world)]
        for step, kept in enumerate(alone.past):
            assert torch.equal(torch.cat([part[step].embedding_BD for part in parts]), kept.embedding_BD)
            assert torch.equal(torch.cat([part[step].labels_B for part in parts]), kept.labels_B)
            sizes = [len(part[step].labels_B) for part in parts]
            assert max(sizes) - min(sizes) <= 1


def test_an_empty_memory_and_one_that_is_not_there(tmp_path: Path) -> None:
    config = LossConfig(memory=3)
    checkpoint: Any = SimpleNamespace(path=tmp_path)
    with pytest.raises(CheckpointError, match=r"memory\.safetensors: missing"):
        start_memory(config, checkpoint, world_of(0, 1))
    (tmp_path / MEMORY).write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match=r"memory\.safetensors: .*use another"):
        start_memory(config, checkpoint, world_of(0, 1))
    save_memory(whole_memory(Memory(config), 5, world_of(0, 1)), tmp_path)
    for world in (1, 2):
        again = start_memory(config, checkpoint, world_of(0, world))
        assert again and not again.past
    assert start_memory(LossConfig(), None, world_of(0, 1)) is None


def test_a_resumed_run_has_the_memory_of_one_that_nobody_stopped(tmp_path: Path) -> None:
    """On one rank: the same losses to the bit, with a memory that has a part from the third step on."""
    recipe = tmp_path / "tiny.toml"
    text = RECIPE.replace("identity_weight = 0.1", "memory = 2\nmemory_start = 2").replace(
        "linear", "constant"
    )
    recipe.write_text(text.replace("steps = 6", "steps = 5"))
    train("one", recipe, tmp_path / "straight")
    train("one", recipe, tmp_path / "stopped", "--set", "optimizer.steps=4")
    train("one", recipe, tmp_path / "stopped", "--resume")
    run = tmp_path / "stopped" / "tiny"
    assert losses(run) == losses(tmp_path / "straight" / "tiny")
    of_memory = [json.loads(line)["memory_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert of_memory[:2] == [0, 0] and min(of_memory[2:]) > 0
    assert (
        MEMORY in json.loads((run / "checkpoints" / "step_00000004" / "manifest.json").read_text())["files"]
    )
