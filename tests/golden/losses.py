"""A script for torchrun: sha256 of the value and the gradient of every public loss, on the CPU.

python -m torch.distributed.run --nproc_per_node 2 losses.py CHECKOUT OUTPUT
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import maskreid_kernels

BACKENDS = ("reference", "dense", "chunked", "triton", "auto")
SIZES = ((7, 3), (24, 8), (300, 40))  # rows of all ranks, columns
INTERPRETED_ROWS = 24
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ranking_loss": [{}, {"negatives": "violating"}, {"normalize": False}],
    "batch_hard_loss": [{}, {"margin": "soft", "distance": "cosine"}, {"normalize": True}],
    "all_pairs_loss": [{}, {"scale": 16.0, "margin": 0.1}],
    "n_pair_loss": [{}, {"scale": 16.0}],
}


def cases() -> Iterator[tuple[str, str, int, int, torch.dtype, dict[str, Any]]]:
    names = sorted(name for name in maskreid_kernels.__all__ if name.endswith("_loss"))
    for name, backend, (rows, columns), dtype in product(
        names, BACKENDS, SIZES, (torch.float32, torch.float64)
    ):
        interpreted = backend == "triton"  # slow: fewer cases
        if interpreted and rows > INTERPRETED_ROWS:
            continue
        for options in OPTIONS.get(name, [{}])[: 1 if interpreted and rows == INTERPRETED_ROWS else None]:
            yield name, backend, rows, columns, dtype, options


def digest(
    name: str, backend: str, rows: int, columns: int, dtype: torch.dtype, options: dict[str, Any]
) -> str:
    """Of this rank's value and gradient; "refused" where the loss has no such backend."""
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(rows)
    labels = torch.randint(max(2, rows // 4), (rows,), generator=generator)
    if name == "softmax_loss":  # its columns are the identities
        columns = max(2, rows // 4)
    centres = torch.randn(max(2, rows // 4), columns, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mine = slice(rows * rank // world, rows * (rank + 1) // world)
    embeddings = (centres[labels] + noise)[mine].to(dtype).requires_grad_()
    group = dist.group.WORLD if world > 1 else None
    try:
        loss = getattr(maskreid_kernels, name)(
            embeddings, labels[mine], group=group, backend=backend, **options
        )
    except ValueError as error:
        if "not available" in str(error):
            return "refused"
        raise
    loss.backward()
    assert embeddings.grad is not None
    return hashlib.sha256(loss.detach().numpy().tobytes() + embeddings.grad.numpy().tobytes()).hexdigest()


def main() -> None:
    checkout, output = (Path(argument) for argument in sys.argv[1:])
    assert Path(maskreid_kernels.__file__).is_relative_to(checkout), "not the checkout's own package"
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    values = {}
    for name, backend, rows, columns, dtype, options in cases():
        words = [name, backend, f"{rows} x {columns}", str(dtype).removeprefix("torch.")]
        words += [f"{key}={value}" for key, value in options.items()]
        label = ", ".join([*words, f"rank {dist.get_rank()}"])
        values[label] = digest(name, backend, rows, columns, dtype, options)
    (output / f"{dist.get_rank()}.json").write_text(json.dumps(values))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
