"""What one may choose of re-ranking."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ReRanking:
    """k1, k2: neighbours of the sets, and of the mean (1: no mean). weight: of the distance in the final
    mixture.

    power: "squared", d is the squared Euclidean distance (cosine: 1 - similarity, half of it for unit rows);
    "fourth", its square. index: what finds the neighbours, our tiles or FAISS, which find the same.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3
    power: Literal["squared", "fourth"] = "squared"
    index: Literal["exact", "faiss"] = "exact"

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"re-ranking: {name} is an integer of at least 1, not {value!r}")
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"re-ranking: weight lies between 0 and 1, not {self.weight!r}")
        if self.power not in ("squared", "fourth"):
            raise ValueError(f"re-ranking: power is squared or fourth, not {self.power!r}")
        if self.index not in ("exact", "faiss"):
            raise ValueError(f"re-ranking: index is exact or faiss, not {self.index!r}")
