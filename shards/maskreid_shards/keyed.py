"""Random bits that depend on a key and nothing else: no state, the same under every numpy version.

A chain of SplitMix64 finalisers (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014), on whole arrays. numpy promises stable streams for its bit generators but not for
`Generator.permutation`, and a generator per identity would cost more than the identity's whole draw.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def keyed_bits(*words: ArrayLike) -> NDArray[np.uint64]:
    """64 uniform bits for each key, a tuple of integers; array words are broadcast against each other.

    Negative integers count modulo 2**64. Sorting items by their bits is a random permutation of them.
    """
    bits = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            mixed = (bits ^ _as_uint64(word)) + _GOLDEN
            mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
            mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
            bits = mixed ^ (mixed >> np.uint64(31))
    return np.asarray(bits)


def _as_uint64(word: ArrayLike) -> NDArray[np.uint64]:
    if isinstance(word, int):
        return np.asarray(word % 2**64, np.uint64)
    return np.asarray(word).astype(np.uint64)
