"""Drawing by lot: samples that depend on a seed and on what the texts say, never on their order or on the machine.

A text's lot is a hash of its content hash and a salt; the lowest lots win. No random number generator is involved.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


def hash_priorities(keys: NDArray[np.uint64], salt: str) -> NDArray[np.uint64]:
    """(texts,) the lots of texts by their content hashes (texts, 2)."""
    # The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection that scatters the salted hashes anew.
    mixed = keys[:, 1] ^ np.uint64(salted_number(salt))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    drawn: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return drawn


def draw(ids: Ids, count: int | None, lots: NDArray[np.uint64]) -> Ids:
    """The `count` ids of lowest lot, ascending; all of them for None.

    Args:
        lots: (texts,) indexed by id.
    """
    if count is None or len(ids) <= count:
        return np.sort(ids)
    return np.sort(ids[np.argsort(lots[ids], kind="stable")[:count]])


def draw_others(by_key: Ids, without: Ids, count: int, salt: str) -> Ids:
    """`count` ids that are not among `without`, ascending; fewer when there are no more.

    The ids in order of their content hashes are in no order at all as far as their meaning goes. This walks through
    them from a place and in strides that the salt decides, which costs what it draws and not what there is.

    Args:
        by_key: all ids, in order of their content hashes.
    """
    total = len(by_key)
    start, stride = salted_number(salt + " start") % total, salted_number(salt + " stride") % total or 1
    while math.gcd(stride, total) != 1:
        stride += 1
    found = np.empty(0, np.int32)
    step = count + len(without)
    for first in range(0, total, step):
        places = (start + np.arange(first, min(first + step, total)) * stride) % total
        passed = by_key[places]
        found = np.concatenate([found, passed[~np.isin(passed, without)]])
        if len(found) >= count:
            break
    return np.sort(found[:count])


def draw_names(names: Iterable[str], count: int | None, salt: str) -> list[str]:
    """The `count` names of lowest lot; all of them for None."""
    return sorted(names, key=lambda name: salted_number(f"{salt} {name}"))[:count]


def salted_number(text: str) -> int:
    """A number below 2⁶⁴ that a text decides, and the same everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
