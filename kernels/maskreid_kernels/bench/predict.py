"""A model of one pass over the tiles on an H100 or H200, from machine code for sm_90: to be tested by a run,
not a fact.

A tile's steps over D take the longest of their products, their instructions and their bytes from the L2
cache; then the first loads are waited for, and the rest of the tile is added, because with one program per
processor nothing overlaps it. The pass takes no less than its bytes from memory. What is assumed stands in
capitals.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..symmetric_tiles import STRIP, Triangle, triangle
from ..triton_tiles import TileShape
from .aot import Compiled


@dataclass(frozen=True)
class Card:
    """Processors, the bf16 rate and copy bandwidth that large products and copies were seen to reach, the L2
    cache."""

    processors: int
    flops: float
    bytes_per_second: float
    l2_bytes: int

    @property
    def clock_hz(self) -> float:
        """At which the tensor cores give `flops`."""
        return self.flops / (self.processors * FLOP_PER_CLOCK["bf16"])


# What a processor issues per clock: warp instructions, and lanes of each unit (Hopper tuning guide, CUDA C++
# guide 16.3).
FLOP_PER_CLOCK = {"bf16": 4096, "bf16x3": 4096 / 3, "tf32": 2048, "tf32x3": 2048 / 3, "ieee": 256}
WARP_INSTRUCTIONS = 4
INTEGER_WARPS, SPECIAL_WARPS = 2, 0.5  # 64 lanes of integers, 16 of exponentials
INTEGER = ("IADD3", "LOP3", "IMNMX", "VIMNMX", "VIMNMX3", "SHF", "LEA", "ISETP", "SEL", "VIADD")
REGISTERS, SHARED_BYTES, THREADS = 65536, 227 << 10, 2048  # of a processor
CARDS = {"H100": Card(132, 790e12, 3.0e12, 50 << 20), "H200": Card(132, 790e12, 4.3e12, 60 << 20)}

L2_BYTES_PER_SECOND = 6.5e12  # to all processors together: assumed, and measured by the GPU program
REFILL_CLOCKS = 700  # until a tile's first loads arrive, where a loop over D starts anew for each
L2_USABLE = 0.8  # of the cache, by operands that are to stay in it


@dataclass(frozen=True)
class Pass:
    """ms of a pass by term, were each alone, and as they combine."""

    products: float
    instructions: float
    l2: float
    memory: float
    rest: float
    total: float


def issue_clocks(counts: dict[str, int], warps: int) -> float:
    """Clocks of one processor to issue the instructions for all warps: the slowest of the three pipes."""
    integer = sum(count for name, count in counts.items() if name in INTEGER)
    return warps * max(
        sum(counts.values()) / WARP_INSTRUCTIONS,
        integer / INTEGER_WARPS,
        counts.get("MUFU", 0) / SPECIAL_WARPS,
    )


def programs_per_processor(program: Compiled) -> int:
    """How many run on one processor at a time."""
    threads = 32 * program.warps
    registers = threads * -(-max(program.registers, 1) // 8) * 8
    return max(min(REGISTERS // registers, SHARED_BYTES // max(program.shared, 1), THREADS // threads), 1)


def triangle_of(program: Compiled, places: int, card: Card) -> Triangle | None:
    """The walk of a program over the upper triangle of S; None of one that takes all of it."""
    if "specialised" in program.program:  # a tile a program, in strips of pairs of blocks
        blocks = -(-places // program.tile[0])
        return Triangle(1, blocks)
    if "symmetric" not in program.program:
        return None
    tile = TileShape(*program.tile, program.warps, 3, one_slab=program.tile[2] >= program.job.columns)
    return triangle(places, tile, card.processors)


def predict(
    program: Compiled,
    rows: int,
    places: int,
    columns: int,
    card: Card,
    *,
    marked_tiles: float = 0.0,
    chunks: int = 1,
) -> Pass:
    """A pass over rows x places, or over the upper triangle of them. `marked_tiles`: share that records
    pairs. `chunks`: of columns, walked side by side. Atomic minima are not in it.
    """
    block_m, block_n, block_d = program.tile
    size = 2 if program.job.preset == "bf16" else 4
    tiles = -(-rows // block_m) * -(-places // block_n)
    share, walk = 1.0, triangle_of(program, places, card)
    slabs = -(-columns // block_d)
    resident = slabs == 1  # the anchors' rows stay on the chip
    per_second = card.processors * card.clock_hz
    products = slabs * 2 * block_m * block_n * block_d / FLOP_PER_CLOCK[program.job.preset]
    steps = slabs * issue_clocks(dict(program.per_slab), program.warps)
    loaded: float = (block_n if resident else block_m + block_n) * columns * size
    if walk is not None:  # the whole tiles on the diagonal too; rows stay for the tiles of a block
        share = (1 + max(block_m, block_n) / places) / 2
        loaded += resident * block_m * columns * size * block_n / (walk.side * max(block_m, block_n))
    l2 = loaded / L2_BYTES_PER_SECOND * per_second
    rest = issue_clocks(dict(program.per_tile), program.warps)
    rest += marked_tiles * issue_clocks(dict(program.per_marks), program.warps)
    if programs_per_processor(program) > 1:
        tile = max(products, steps, l2, rest)
    elif resident or "specialised" in program.program:  # the next tile's loads go on behind this one's rest
        tile = max(max(products, steps) + rest, l2)
    else:
        tile = max(products, steps, l2) + REFILL_CLOCKS + rest
    if walk is None:
        memory = memory_bytes(program, rows, places, columns, card, chunks) / card.bytes_per_second
    else:
        memory = memory_bytes_of_triangle(program, walk, places, columns, card) / card.bytes_per_second
    to_ms = 1e3 * share * tiles / per_second
    return Pass(
        products=to_ms * products,
        instructions=to_ms * steps,
        l2=to_ms * l2,
        memory=1e3 * memory,
        rest=to_ms * rest,
        total=max(to_ms * tile, 1e3 * memory),
    )


def memory_bytes(program: Compiled, rows: int, places: int, columns: int, card: Card, chunks: int) -> float:
    """Bytes from memory by launch order: `chunks` programs side by side share a block of rows, the rest take
    others.

    A wave reads its blocks of rows and its chunks of columns once, if the rows' blocks stay in the L2 cache;
    else the rows come again with every tile. Programs whose rows stay on the chip read them once in any
    order.
    """
    block_m, block_n, block_d = program.tile
    row_bytes = columns * (2 if program.job.preset == "bf16" else 4)
    at_once = card.processors * programs_per_processor(program)
    row_blocks = -(-rows // block_m)
    chunks = min(chunks, at_once)
    blocks = min(max(at_once // chunks, 1), row_blocks)
    waves = max(row_blocks * chunks / at_once, 1)
    held = (blocks * block_m + chunks * block_n) * row_bytes
    rows_again = row_blocks * block_m * row_bytes
    if block_d < columns and held > L2_USABLE * card.l2_bytes:
        rows_again *= -(-places // block_n)
    everything = places * row_bytes
    return rows_again + (everything if everything < L2_USABLE * card.l2_bytes else waves * everything)


def memory_bytes_of_triangle(
    program: Compiled, walk: Triangle, places: int, columns: int, card: Card
) -> float:
    """Bytes from memory of a pass over the upper triangle, strip by strip.

    A strip's columns stay in the L2 cache if they fit beside the rows that its programs walk just then, else
    they come again with every row of tiles; the rows above a strip come once with it.
    """
    block_m, block_n, _ = program.tile
    strip = int(STRIP.value)
    row_bytes = columns * (2 if program.job.preset == "bf16" else 4)
    everything = places * row_bytes
    if everything < L2_USABLE * card.l2_bytes:
        return everything
    strips = max(walk.blocks / strip, 1)
    at_once = card.processors * programs_per_processor(program)
    height = walk.side * max(block_m, block_n)
    columns_bytes = min(strip, walk.blocks) * height * row_bytes
    held = columns_bytes + at_once / strip * block_m * row_bytes
    again = 1 if held <= L2_USABLE * card.l2_bytes else height // block_m
    return strips * everything / 2 + max(walk.programs / at_once, 1) * again * columns_bytes
