"""Random samples of texts by hash priorities. Knows ids and hashes only, no random number generator.

A text's priority is a hash of its content hash and a salt; the texts of lowest priority are drawn. A sample thus
depends on the seed and on what the texts say, not on their order or the machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


def hash_priorities(keys: NDArray[np.uint64], salt: str) -> NDArray[np.uint64]:
    """Return the priorities (texts,) of texts by their content hashes (texts, 2)."""
    # The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection that mixes the salted hashes again.
    mixed = keys[:, 1] ^ np.uint64(salted_number(salt))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    priorities: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return priorities


def draw(ids: Ids, count: int | None, priorities: NDArray[np.uint64]) -> Ids:
    """Return the `count` ids of lowest priority, ascending; all of them for None.

    Args:
        priorities: (texts,) indexed by id.
    """
    if count is None or len(ids) <= count:
        return np.sort(ids)
    return np.sort(ids[np.argsort(priorities[ids], kind="stable")[:count]])


def draw_others(by_key: Ids, without: Ids, count: int, salt: str) -> Ids:
    """Draw `count` ids that are not in `without`; returns them ascending, fewer if there are not enough.

    The order of content hashes is random with respect to meaning. This walks through it from a start and in strides
    that the salt decides, so the cost grows with the ids drawn, not with all ids.

    Args:
        by_key: all ids, ordered by content hash.
    """
    total = len(by_key)
    start, stride = salted_number(salt + " start") % total, salted_number(salt + " stride") % total or 1
    while math.gcd(stride, total) != 1:
        stride += 1
    found = np.empty(0, np.int32)
    step = count + len(without)
    for first in range(0, total, step):
        positions = (start + np.arange(first, min(first + step, total)) * stride) % total
        visited = by_key[positions]
        found = np.concatenate([found, visited[~np.isin(visited, without)]])
        if len(found) >= count:
            break
    return np.sort(found[:count])


def draw_names(names: Iterable[str], count: int | None, salt: str) -> list[str]:
    """Return the `count` names of lowest priority; all of them for None."""
    return sorted(names, key=lambda name: salted_number(f"{salt} {name}"))[:count]


def salted_number(text: str) -> int:
    """Hash a text to a number below 2⁶⁴, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
