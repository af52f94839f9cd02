"""What a finished training of a study leaves: one small JSON file that can be committed."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maskreid_dist.config import Count, Positive
from maskreid_dist.errors import UserError
from maskreid_dist.recipe import describe
from maskreid_shards.atomic import write_atomically
from maskreid_shards.opening import read_json

FORMAT = "maskreid-study-result-1"
MOST_QUERIES = 10_000_000
AP_TYPE, RANK_TYPE = np.dtype("<f4"), np.dtype("<i4")


class Queries(BaseModel):
    """Of each query in the split's order: its average precision (nan: skipped) as float32 and the rank of its
    first true match (0: skipped) as int32, little-endian, packed by zlib, in base64."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    count: Annotated[int, Field(gt=0, le=MOST_QUERIES)]
    average_precision: str
    first_rank: str


class RowResult(BaseModel):
    """figures: six, in per cent. queries_of: sha256 of the labels of queries and gallery; results that have
    the same one can be compared query by query. minutes: in steps of training. recipe: the whole one.
    network_of: the row whose network it is, of a row that is not trained."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: str
    study: str
    row: str
    seed: Count
    steps: Count
    figures: dict[str, float]
    queries_of: str
    queries: Queries
    minutes: float | None
    threads: Positive
    processor: str
    versions: dict[str, str]
    commit: str | None
    finished: str
    weights_sha256: str
    shards: str  # the fingerprint of what it was trained on; of another row's network, of the row's own
    recipe: dict[str, Any]
    network_of: str | None = None

    def average_precision(self) -> NDArray[np.float64]:
        """(Q,) float64, nan for a skipped query."""
        return _unpacked(self.queries.average_precision, AP_TYPE, self.queries.count).astype(np.float64)

    def first_rank(self) -> NDArray[np.int64]:
        """(Q,) int64, 0 for a skipped query."""
        return _unpacked(self.queries.first_rank, RANK_TYPE, self.queries.count).astype(np.int64)


@dataclass(frozen=True)
class Found:
    """A result file, and the result in it."""

    path: Path
    result: RowResult


def packed_queries(average_precision: NDArray[np.float64], first_rank: NDArray[np.int64]) -> Queries:
    """See `Queries`."""
    return Queries(
        count=len(first_rank),
        average_precision=_packed(average_precision, AP_TYPE),
        first_rank=_packed(first_rank, RANK_TYPE),
    )


def write_result(path: Path, result: RowResult) -> None:
    """Write the file, all at once."""
    write_atomically(path, (json.dumps(result.model_dump(mode="json"), indent=1) + "\n").encode())


def read_result(path: Path) -> RowResult:
    """Raises UserError, one line: no result, or a damaged one."""
    try:
        values = read_json(path)
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        result = RowResult.model_validate(values)
        result.average_precision(), result.first_rank()
        return result
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); remove it, and run its row again"
        ) from None
    except ValidationError as error:
        text = describe(error, list(RowResult.model_fields))
        raise UserError(f"{path}: no result of a study: {text}; remove it, and run its row again") from None
    except ValueError as error:
        raise UserError(f"{path}: no result of a study: {error}; remove it, and run its row again") from None


def find_results(folder: Path) -> dict[str, Found]:
    """The results that lie in a folder by file name, which is ROW-sSEED. Raises UserError for a damaged
    one."""
    paths: Sequence[Path] = sorted(folder.glob("*-s*.json")) if folder.is_dir() else ()
    return {path.stem: Found(path, read_result(path)) for path in paths}


def _packed(values: NDArray[Any], kind: DTypeLike) -> str:
    return base64.b64encode(zlib.compress(values.astype(kind).tobytes(), 9)).decode()


def _unpacked(text: str, kind: np.dtype[Any], count: int) -> NDArray[Any]:
    """Raises ValueError: not of that many."""
    size = count * kind.itemsize
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(text, validate=True), size)
    except zlib.error as error:
        raise ValueError(f"its queries are damaged ({error})") from None
    if len(data) != size or stream.decompress(stream.unconsumed_tail, 1):
        raise ValueError(f"its queries are not {count}")
    return np.frombuffer(data, kind)
