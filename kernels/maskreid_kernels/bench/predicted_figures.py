"""The figures of the GPU program as the model predicts them, key by key. Nothing here was measured on a GPU.

A whole loss is its passes, its bytes from memory, and the host's launches where these take longer. Names: N
rows, D columns, K images an identity; times in ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch

from ..backends import TRITON_FROM_ROWS
from ..ranking.triton_backward import BAND_ROWS, GRADIENT_BYTES
from ..ranking.triton_forward import PARTIAL_BYTES_PER_ANCHOR, SPARSE_UP_TO
from ..triton_tiles import PARTIAL_BYTES, SIDE_BY_SIDE
from . import eager
from .aot import Compiled
from .gpu import counts
from .gpu.choices import COMPILED, CROSSOVER_ROWS, SHARES
from .predict import L2_BYTES_PER_SECOND, Card, Pass, predict
from .providers import OURS
from .traffic import Traffic, traffic

IMAGES = 4
# Share of the tiles in which a pair is recorded, by the share of negatives inside the margin: counted on
# made-up rows.
MARKED_TILES = {0.001: 0.998, 0.003: 1.0, 0.01: 1.0, 0.02: 1.0, 0.04: 1.0, 0.05: 1.0, 0.5: 1.0}
BOTH_ROLES = 1.8  # pairs inside the margin in either role, to those in one
# The host's time for an operator of torch with its part of autograd, and for a Triton launch: assumed. In a
# compiled form operators are fused into a few kernels, and a pair's matrices are read and written about eight
# times in bfloat16.
OPERATOR_MS, LAUNCH_MS = 6e-3, 10e-3
COMPILED_BYTES_PER_PAIR, COMPILED_KERNELS, COMPILED_CALL_MS = 16.0, 14, 0.06
# Launches of a step in Triton, operators of torch among them, as counted without a GPU.
LAUNCHES = {
    "batch_hard": 17,
    "ranking": 19,
    "n_pair": 54,
    "all_pairs": 54,
    "circle": 63,
    "supervised_contrastive": 61,
}
BANDS = ("ranking.dense_weights", "logsumexp.pairs")  # programs that make bands of weights
BANDS_OF_TRIANGLE = 16  # of the log-sum-exp family's backward at 65536 rows, in 64 MiB each
FLOAT32_FLOPS = 50e12  # of products in float32, as the dense backend takes them
CONSTANTS = {
    "ranking": {"margin": 0.3},
    "batch_hard": {"margin": 0.3},
    "n_pair": {"scale": 10.0},
    "all_pairs": {"scale": 10.0},
    "circle": {"margin": 0.25, "gamma": 128.0},
    "supervised_contrastive": {"temperature": 0.1},
}


def chunks_of(program: Compiled, rows: int, card: Card) -> int:
    """Chunks of columns whose programs run side by side, as `column_chunks` takes them.

    A band goes panel by panel, and a panel about fits the L2 cache: it is counted as a pass in such chunks
    is.
    """
    if program.program.startswith(BANDS):
        return SIDE_BY_SIDE
    per_anchor = PARTIAL_BYTES_PER_ANCHOR if program.program.startswith("ranking") else 8
    chunks = -(-4 * card.processors // -(-rows // program.tile[0]))
    return max(chunks, SIDE_BY_SIDE) if SIDE_BY_SIDE * rows * per_anchor <= PARTIAL_BYTES else chunks


def predicted_figures(programs: Sequence[Compiled], card: Card) -> dict[str, float]:
    """Every figure of the steps that measure, by its key."""
    model = Model(tuple(programs), card)
    found = {"copy": card.bytes_per_second / 1e12, "L2 reads": L2_BYTES_PER_SECOND / 1e12}
    for D in (2048, 256):
        found[f"product, D = {D}"] = model.product(65536, D)
    found |= (
        _passes(model)
        | _losses(model)
        | _symmetric(model)
        | _million(model)
        | _crossover(model)
        | _marks(model)
        | _counts(model)
    )
    for kernel in OURS:  # ours round the rows once, plain torch rounds every similarity
        found[f"{kernel} gradient error beside eager's"] = 0.5
    return found


@dataclass(frozen=True)
class Model:
    """ms of what the losses are made of, on a card."""

    programs: tuple[Compiled, ...]
    card: Card

    def find(self, name: str, D: int) -> Compiled:
        """The program compiled for D columns, or for 256 where that takes them in steps."""
        of_name = [one for one in self.programs if one.program == name]
        exact = [one for one in of_name if one.job.columns == D]
        return (exact or [one for one in of_name if one.tile[2] < D])[0]

    def has(self, name: str) -> bool:
        return any(one.program == name for one in self.programs)

    def over_tiles(self, name: str, N: int, D: int, share: float = 0.0) -> Pass:
        program = self.find(name, D)
        marked, chunks = MARKED_TILES.get(share, 0.0), chunks_of(program, N, self.card)
        return predict(program, N, N, D, self.card, marked_tiles=marked, chunks=chunks)

    def product(self, N: int, D: int) -> float:
        """X X^T, whose result is written."""
        return max(1e3 * 2 * N * N * D / self.card.flops, self.memory(2 * N * N))

    def memory(self, size: float) -> float:
        return 1e3 * size / self.card.bytes_per_second

    def bands(self, name: str, N: int, D: int) -> float:
        """A backward by bands of weights: the pass that makes them, the product with the rows, both ways of
        the band."""
        return (
            self.over_tiles(name, N, D).total + 1e3 * 2 * N * N * D / self.card.flops + self.memory(4 * N * N)
        )

    def ranking_forward(self, N: int, D: int, share: float) -> float:
        return self.over_tiles("ranking.forward", N, D, share).total

    def by_marks(self, N: int, D: int, share: float) -> float:
        """Every marked row is read once, from memory where the rows do not fit the L2 cache."""
        size = BOTH_ROLES * share * N * N * D * 2
        missed = size if N * D * 2 > 0.8 * self.card.l2_bytes else N * D * 2
        return max(self.memory(missed), 1e3 * size / L2_BYTES_PER_SECOND)

    def loss(self, kernel: str, N: int, D: int, share: float = 0.01) -> float:
        """Forward and backward in Triton, without waiting for the host."""
        rows = self.memory(N * D * 2)
        if kernel == "batch_hard":  # squares, picks and the gradient: about nine reads or writes of the rows
            return self.over_tiles("batch_hard.negatives", N, D).total + 9 * rows
        if kernel == "ranking":
            backward = self.by_marks if share <= SPARSE_UP_TO / BOTH_ROLES else self._by_bands
            return self.ranking_forward(N, D, share) + backward(N, D, share) + 12 * rows
        circle = " circle" if kernel == "circle" else ""
        forward = self.over_tiles(f"logsumexp.negatives{circle}", N, D).total
        return forward + self.bands(f"logsumexp.pairs{circle}", N, D) + 20 * rows

    def _by_bands(self, N: int, D: int, share: float) -> float:
        return self.bands("ranking.dense_weights", N, D)

    def plain(self, kernel: str, N: int, D: int, form: str = "eager") -> float:
        """Plain torch: three products, its matrices' bytes, or the host. `dense` is ours, in float32."""
        count = counted(kernel, form)
        flops = FLOAT32_FLOPS if form == "dense" else self.card.flops
        products = 1 if form == "mined" else 3
        device = products * 1e3 * 2 * N * N * D / flops + self.memory(count.bytes_per_pair * N * N)
        return max(device, count.operators * OPERATOR_MS)

    def compiled(self, N: int, D: int) -> float:
        device = 3 * 1e3 * 2 * N * N * D / self.card.flops + self.memory(COMPILED_BYTES_PER_PAIR * N * N)
        return max(device, COMPILED_CALL_MS + COMPILED_KERNELS * LAUNCH_MS)

    def triton(self, kernel: str, N: int, D: int, share: float) -> float:
        """With the host."""
        return max(self.loss(kernel, N, D, share), LAUNCHES[kernel] * LAUNCH_MS)


@cache
def counted(kernel: str, form: str) -> Traffic:
    """Of the eager form, the dense backend (float32), or mining in blocks."""
    words = CONSTANTS[kernel]
    if form == "dense":
        return traffic(partial(OURS[kernel], backend="dense", **words), torch.float32)
    plain: Callable[..., torch.Tensor] = eager.batch_hard_mined if form == "mined" else getattr(eager, kernel)
    return traffic(partial(plain, **words))


def _passes(model: Model) -> dict[str, float]:
    found = {}
    for D in (2048, 256):
        found[f"batch_hard forward pass, D = {D}"] = model.over_tiles("batch_hard.negatives", 65536, D).total
        for share in (0.001, 0.5):
            key = f"ranking forward pass, D = {D}, {100 * share:g} % violators"
            found[key] = model.ranking_forward(65536, D, share)
        for kernel, name in (("n_pair", "negatives"), ("circle", "negatives circle")):
            found[f"{kernel} forward pass, D = {D}"] = model.over_tiles(f"logsumexp.{name}", 65536, D).total
    return found


def _losses(model: Model) -> dict[str, float]:
    found: dict[str, float] = {}
    for kernel, D, share in (
        ("batch_hard", 2048, None),
        ("ranking", 2048, 0.001),
        ("ranking", 2048, 0.5),
        ("batch_hard", 256, None),
        ("ranking", 256, 0.001),
        ("n_pair", 2048, None),
        ("supervised_contrastive", 2048, None),
        ("circle", 2048, None),
        ("n_pair", 256, None),
    ):
        key = f"{kernel}, D = {D}" + ("" if share is None else f", {100 * share:g} % violators")
        found[key] = model.loss(kernel, 65536, D, share or 0.01)
        found[f"{key}, to the product"] = found[key] / model.product(65536, D)
    mined = model.plain("batch_hard", 65536, 2048, "mined")
    found["batch_hard, D = 2048, times faster than chunked mining"] = mined / found["batch_hard, D = 2048"]
    for kernel, D in (("ranking", 256), ("batch_hard", 2048)):
        ours, key = model.loss(kernel, 32768, D), f"{kernel} 32768, D = {D}, times faster than"
        found[f"{key} eager"] = model.plain(kernel, 32768, D) / ours
        found[f"{key} compiled"] = model.compiled(32768, D) / ours
    return found


def _symmetric(model: Model) -> dict[str, float]:
    """The losses with a pass over the upper triangle, that pass instead of the rectangular one."""
    found: dict[str, float] = {}
    for kernel, name, circle in (
        ("batch_hard", "batch_hard", ""),
        ("n_pair", "logsumexp", ""),
        ("circle", "logsumexp", " circle"),
    ):
        unbounded = " unbounded" if circle else ""
        for D in (2048, 256):
            key = f"{kernel} symmetric, D = {D}"
            whole = model.loss(kernel, 65536, D)
            half = model.over_tiles(f"{name}.symmetric_negatives{unbounded}{circle}", 65536, D).total
            saved = model.over_tiles(f"{name}.negatives{circle}", 65536, D).total - half
            if kernel != "batch_hard":  # bands on and right of the diagonal; rows right of it come and go
                saved += (
                    (1 - 1 / BANDS_OF_TRIANGLE)
                    / 2
                    * model.over_tiles(f"{name}.pairs{circle}", 65536, D).total
                )
                saved -= model.memory(6 * BANDS_OF_TRIANGLE / 2 * 65536 * D * 4)
            found |= _beside_rectangular(model, key, D, half, whole, saved)
    for D in (2048, 256) if model.has("batch_hard.specialised_negatives") else ():
        half = model.over_tiles("batch_hard.specialised_negatives", 65536, D).total
        saved = model.over_tiles("batch_hard.negatives", 65536, D).total - half
        saved -= model.memory(2 * 65536 * D * 2)  # the sorted copy
        key, whole = f"batch_hard specialised, D = {D}", model.loss("batch_hard", 65536, D)
        found |= _beside_rectangular(model, key, D, half, whole, saved)
    for D in (2048, 256):
        for share in (0.001, 0.5):
            key = f"ranking symmetric, D = {D}, {100 * share:g} % violators"
            half = model.over_tiles("ranking.symmetric_forward", 65536, D, share).total
            saved = model.ranking_forward(65536, D, share) - half
            if share > SPARSE_UP_TO:  # bands; what they push right of the diagonal comes and goes
                bands = -(-65536 // min(BAND_ROWS, GRADIENT_BYTES // (4 * D)))
                saved += (1 - 1 / bands) / 2 * model.over_tiles("ranking.dense_weights", 65536, D).total
                saved += model.memory(65536**2) - model.memory(bands / 2 * 65536 * D * 8)
            found |= _beside_rectangular(model, key, D, half, model.loss("ranking", 65536, D, share), saved)
    return found


def _beside_rectangular(
    model: Model, key: str, D: int, half: float, whole: float, saved: float
) -> dict[str, float]:
    """half: ms of the pass; whole, saved: of the loss as it was, and what it no longer takes."""
    return {
        f"{key}, forward pass": half,
        key: whole - saved,
        f"{key}, to the product": (whole - saved) / model.product(65536, D),
        f"{key}, times faster than rectangular": whole / (whole - saved),
        f"{key}, gradient beside rectangular": 1e-3,
    }


def _million(model: Model) -> dict[str, float]:
    """At 0.1 % violators the ranking loss's marks do not fit: bands. Peaks from its buffers' sizes, MiB."""
    N, D = 1 << 20, 256
    bands = model.ranking_forward(N, D, 0.001) + model.bands("ranking.dense_weights", N, D)
    return {
        "batch_hard 1048576": model.loss("batch_hard", N, D),
        "ranking 1048576": bands,
        "batch_hard 1048576, peak": 160.0,
        "ranking 1048576, peak": 475.0,
    }


def _crossover(model: Model) -> dict[str, float]:
    found: dict[str, float] = {}
    for kernel in OURS:
        ratios = []
        for N in CROSSOVER_ROWS:
            times = {
                "dense": model.plain(kernel, N, 256, "dense"),
                "triton": model.triton(kernel, N, 256, 0.05),
                "eager": model.plain(kernel, N, 256),
            }
            times["auto"] = times["triton" if N >= TRITON_FROM_ROWS else "dense"]
            if kernel in COMPILED:
                times["compiled"] = model.compiled(N, 256)
            found |= {f"{kernel} {N}, {name}": ms for name, ms in times.items()}
            ratios.append(min(times["eager"], times.get("compiled", times["eager"])) / times["auto"])
        found[f"{kernel} 256 to 8192, auto beside the best of eager and compiled"] = min(ratios)
    return found


def _marks(model: Model) -> dict[str, float]:
    found = {}
    for D in (2048, 256):
        for share in SHARES:
            forward = model.ranking_forward(16384, D, share)
            key = f"ranking 16384, D = {D}, {100 * share:g} % violators"
            found[f"{key}, by marks"] = forward + model.by_marks(16384, D, share)
            found[f"{key}, by bands"] = forward + model.bands("ranking.dense_weights", 16384, D)
    return found


def _counts(model: Model) -> dict[str, float]:
    """Exact evaluation's count: a threshold is walked once a tile in front of the list, all of them anywhere.

    Writing undecided pairs is counted as if every threshold did.
    """
    queries, rows, D = counts.QUERIES, counts.GALLERY, counts.COLUMNS
    program = model.find("retrieval.counts", D)
    key, chunks = f"counts {queries} x {rows}, D = {D}", chunks_of(program, queries, model.card)
    found = {
        f"{key}, good images {place}": predict(
            program, queries, rows, D, model.card, marked_tiles=walked, chunks=chunks
        ).total
        for place, walked in (("in front", 1.0), ("anywhere", float(counts.GOOD)))
    }
    return found | {f"{key}, product": 1e3 * 2 * queries * rows * D / model.card.flops}
