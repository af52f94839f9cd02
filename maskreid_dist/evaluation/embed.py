"""Embeddings of images by a network, trained or not: of a whole split, or of a rank's share of one."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maskreid_dist.config import Config
from maskreid_dist.data.batches import evaluation_loader
from maskreid_dist.errors import SampleError
from maskreid_dist.evaluation.ranks import BATCH_ROWS, Ranks
from maskreid_dist.model import ReIDNetwork
from maskreid_shards import Split


def embed_split(
    network: ReIDNetwork,
    split: Split,
    config: Config,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """(N, D) float32 L2-normalised embeddings, in the split's order. `progress` gets the images done so far,
    and all.

    Raises SampleError for the first batch that cannot be read or decoded.
    """
    network = network.to(device).eval()
    embeddings: NDArray[np.float32] = embed_samples(
        network, split, config, device, np.arange(len(split)), progress
    ).numpy()
    return embeddings


def embed_share(
    network: ReIDNetwork,
    split: Split,
    config: Config,
    ranks: Ranks,
    work: str,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """(n, D) float32: of the images of this rank's `Ranks.rows`, in their order; of one process, of all.
    `progress` gets the images that all ranks have done so far, and all. work: a name that no other has.

    Raises SampleError for the first batch that cannot be read or decoded.
    """

    def count(done: int, _: int) -> None:
        everybody = ranks.count(work, done)
        if progress:
            progress(everybody, len(split))

    network = network.to(ranks.device).eval()
    rows = ranks.rows(len(split))
    samples = np.arange(rows.start, rows.stop)
    own = embed_samples(network, split, config, ranks.device, samples, count, ranks.batch_rows)
    embeddings: NDArray[np.float32] = own.numpy()
    return embeddings


def embed_samples(
    network: nn.Module,
    split: Split,
    config: Config,
    device: torch.device,
    samples: NDArray[np.int64],
    progress: Callable[[int, int], None] | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Tensor:
    """(len(samples), D) float32 on the CPU, the samples' embeddings in their order, by a network that lies
    on `device` in eval mode.

    Raises SampleError for the first batch that cannot be read or decoded.
    """
    rows: list[Tensor] = []
    done = 0
    with torch.no_grad():
        for batch in evaluation_loader(split, config, samples, batch_rows):
            if isinstance(batch, SampleError):
                raise batch
            image = batch.image_B3HW.to(device, memory_format=torch.channels_last)
            rows.append(network(image, batch.mask_B1HW.to(device)).embedding_BD.cpu())
            done += len(batch.pids_B)
            if progress:
                progress(done, len(samples))
    return torch.cat(rows) if rows else torch.zeros(0, config.model.embedding_dim)
