"""What else was tried instead of the kernel of expertise, and how it compares: one thread, one table, one run.

The alternatives are charged less than ours. They are handed float16 responses as uint16 order keys and give average
precision alone; ours starts from the responses and gives six statistics. Run by `make bench`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from expertmine_kernels import ConceptRows, expertise, order_keys
from expertmine_kernels.expertise import Sets
from expertmine_kernels.jit import jit
from expertmine_kernels.ranks import rank_units
from tests.benchmarks.bench_kernels import concepts, responses, seconds

Scores = NDArray[np.float64]
Unsigned = NDArray[np.unsignedinteger[Any]]
PairKernel = Callable[[Unsigned, NDArray[np.int32], NDArray[np.int32], NDArray[np.uint32]], float]

ROUNDS = 5
LANES = 32
LINE = "{:<42} {:<48} {:>9} {:>6}"


def sets(rows: ConceptRows) -> tuple[Sets, Sets, NDArray[np.int32]]:
    """Return what the kernels need of the rows: the positives, the pools, and the pool of each concept."""
    return Sets(rows.positive_indptr, rows.positive_rows), Sets(rows.pool_indptr, rows.pool_rows), rows.pool_of


@jit
def rows_of(which: Sets, number: int) -> NDArray[np.int32]:
    """Return one of the sets."""
    return which.rows[which.indptr[number] : which.indptr[number + 1]]


# One pair at a time: gather the pair's values with their labels, order them, walk them.


def pair_by_pair(kernel: PairKernel, values: Unsigned, limits: NDArray[np.int64], rows: ConceptRows) -> Scores:
    """Give each pair to a kernel, with scratch (4, limit of the unit)."""
    ap = np.empty((rows.concepts, len(values)))
    for_each_pair(kernel, values, limits, *sets(rows), ap)
    return ap


@jit
def for_each_pair(
    kernel: PairKernel,
    values: Unsigned,
    limits: NDArray[np.int64],
    positives: Sets,
    pools: Sets,
    pool_of: NDArray[np.int32],
    ap: Scores,
) -> None:
    for unit in range(values.shape[0]):
        scratch = np.empty((4, limits[unit]), np.uint32)
        for concept in range(ap.shape[0]):
            on, off = rows_of(positives, concept), rows_of(pools, pool_of[concept])
            ap[concept, unit] = kernel(values[unit], on, off, scratch)


@jit
def gather(values: Unsigned, on: NDArray[np.int32], off: NDArray[np.int32], into: NDArray[np.uint32]) -> None:
    """Fill into with the values of the rows, doubled, plus one where the row is positive."""
    for i in range(on.size):
        into[i] = np.uint32(values[np.uint32(on[i])]) << np.uint32(1) | np.uint32(1)
    for i in range(off.size):
        into[on.size + i] = np.uint32(values[np.uint32(off[i])]) << np.uint32(1)


@jit
def walk(ordered: NDArray[np.uint32], positives: int) -> float:
    """Return the average precision of what gather has laid down and a sort has put in ascending order."""
    total, true, counted = 0.0, 0, 0
    for i in range(ordered.size - 1, -1, -1):
        true += ordered[i] & np.uint32(1)
        if i == 0 or ordered[i] >> np.uint32(1) != ordered[i - 1] >> np.uint32(1):
            total += (true - counted) * true / (ordered.size - i)
            counted = true
    return total / positives


@jit
def by_comparison(
    values: Unsigned, on: NDArray[np.int32], off: NDArray[np.int32], scratch: NDArray[np.uint32]
) -> float:
    ordered = scratch[0, : on.size + off.size]
    gather(values, on, off, ordered)
    ordered.sort()
    return walk(ordered, on.size)


@jit
def radix_sort_labelled(ordered: NDArray[np.uint32], scratch: NDArray[np.uint32]) -> None:
    """Sort what gather has laid down by 16 bits, in two passes of 8; the label below them does not matter."""
    spare, low, high = scratch[1], scratch[2, :256], scratch[3, :256]
    low[:] = 0
    high[:] = 0
    for value in ordered:
        low[(value >> np.uint32(1)) & np.uint32(255)] += np.uint32(1)
        high[value >> np.uint32(9)] += np.uint32(1)
    low_total, high_total = np.uint32(0), np.uint32(0)
    for digit in range(256):
        low_count, high_count = low[digit], high[digit]
        low[digit], high[digit] = low_total, high_total
        low_total, high_total = low_total + low_count, high_total + high_count
    for value in ordered:
        digit = (value >> np.uint32(1)) & np.uint32(255)
        spare[low[digit]] = value
        low[digit] += np.uint32(1)
    for value in spare[: ordered.size]:
        digit = value >> np.uint32(9)
        ordered[high[digit]] = value
        high[digit] += np.uint32(1)


@jit
def by_radix(values: Unsigned, on: NDArray[np.int32], off: NDArray[np.int32], scratch: NDArray[np.uint32]) -> float:
    ordered = scratch[0, : on.size + off.size]
    gather(values, on, off, ordered)
    radix_sort_labelled(ordered, scratch)
    return walk(ordered, on.size)


@jit
def by_counting(ranks: Unsigned, on: NDArray[np.int32], off: NDArray[np.int32], scratch: NDArray[np.uint32]) -> float:
    """No order is made: how often each level of the unit occurs, then all levels from the top."""
    true_at, false_at = scratch[0], scratch[1]
    scratch[:2] = 0
    for row in on:
        true_at[ranks[np.uint32(row)]] += np.uint32(1)
    for row in off:
        false_at[ranks[np.uint32(row)]] += np.uint32(1)
    total, true, false = 0.0, 0, 0
    for level in range(true_at.size - 1, -1, -1):
        false += false_at[level]
        if true_at[level]:
            true += true_at[level]
            total += true_at[level] * true / (true + false)
    return total / on.size


def comparison_sort(keys: Unsigned, rows: ConceptRows) -> Scores:
    return pair_by_pair(by_comparison, keys, np.full(len(keys), keys.shape[1]), rows)


def radix(keys: Unsigned, rows: ConceptRows) -> Scores:
    return pair_by_pair(by_radix, keys, np.full(len(keys), max(keys.shape[1], 256)), rows)


def counting(keys: Unsigned, rows: ConceptRows) -> Scores:
    ranked = rank_units(keys)
    return pair_by_pair(by_counting, ranked.ranks, ranked.level_counts, rows)


# A concept's positives and its pool apart, each in order.


def numpy_sort(keys: Unsigned, rows: ConceptRows) -> Scores:
    """NumPy's sort, which has vector instructions: one call per pool and one per concept orders all units."""
    positives, pools, pool_of = sets(rows)
    ap = np.empty((rows.concepts, len(keys)))
    pool, off = -1, keys
    for concept in range(rows.concepts):
        if pool_of[concept] != pool:
            pool = int(pool_of[concept])
            off = np.sort(keys.take(rows_of(pools, pool), axis=1), axis=1)
        merge(np.sort(keys.take(rows_of(positives, concept), axis=1), axis=1), off, ap[concept])
    return ap


@jit
def merge(on: Unsigned, off: Unsigned, ap: Scores) -> None:
    """Fill ap (units,) from the keys of a concept's positives and negatives, (units, rows) each in ascending order."""
    for unit in range(ap.size):
        total, true, left, above = 0.0, 0, on.shape[1] - 1, off.shape[1] - 1
        while left >= 0:
            key, before = on[unit, left], true
            while left >= 0 and on[unit, left] == key:
                left -= 1
            true = on.shape[1] - 1 - left
            while above >= 0 and off[unit, above] >= key:
                above -= 1
            total += (true - before) * true / (true + off.shape[1] - 1 - above)
        ap[unit] = total / on.shape[1]


def table_of_the_pool(keys: Unsigned, rows: ConceptRows) -> Scores:
    ap = np.empty((rows.concepts, len(keys)))
    fill_by_table(keys, *sets(rows), ap)
    return ap


@jit
def fill_by_table(keys: Unsigned, positives: Sets, pools: Sets, pool_of: NDArray[np.int32], ap: Scores) -> None:
    """Count once per unit and pool how many negatives lie at or above each of the 65,536 keys; sort positives only."""
    at_or_above = np.empty(1 << 16, np.uint32)
    scratch = np.empty((4, max(keys.shape[1], 256)), np.uint32)
    for unit in range(keys.shape[0]):
        pool = -1
        for concept in range(ap.shape[0]):
            if pool_of[concept] != pool:
                pool = pool_of[concept]
                at_or_above[:] = 0
                for row in rows_of(pools, pool):
                    at_or_above[keys[unit, row]] += np.uint32(1)
                for key in range(at_or_above.size - 2, -1, -1):
                    at_or_above[key] += at_or_above[key + 1]
            on = rows_of(positives, concept)
            ordered = scratch[0, : on.size]
            gather(keys[unit], on, on[:0], ordered)
            radix_sort_labelled(ordered, scratch)
            total, counted = 0.0, 0
            for i in range(on.size - 1, -1, -1):
                if i == 0 or ordered[i] != ordered[i - 1]:
                    true = on.size - i
                    total += (true - counted) * true / (true + at_or_above[ordered[i] >> np.uint32(1)])
                    counted = true
            ap[concept, unit] = total / on.size


# A sorting network, whose steps do not depend on the data: 32 units side by side, in vector instructions.


def network_of_keys(keys: Unsigned, rows: ConceptRows) -> Scores:
    return by_network(keys.astype(np.uint32), rows)


def network_of_ranks(keys: Unsigned, rows: ConceptRows) -> Scores:
    """Ranks leave a bit for the label in half the width, as long as there are at most 32,768 levels."""
    return by_network(rank_units(keys).ranks.astype(np.uint16), rows)


def by_network(values: Unsigned, rows: ConceptRows) -> Scores:
    """Give LANES units at a time to the network, sentence by sentence; units must be a multiple of LANES."""
    units, sentences = values.shape
    doubled = np.ascontiguousarray((values << 1).reshape(units // LANES, LANES, sentences).transpose(0, 2, 1))
    ap = np.empty((rows.concepts, units))
    fill_by_network(doubled, *sets(rows), ap)
    return ap


@jit
def fill_by_network(doubled: Unsigned, positives: Sets, pools: Sets, pool_of: NDArray[np.int32], ap: Scores) -> None:
    one = doubled.dtype.type(1)
    block = np.empty(doubled.shape[1] * LANES, doubled.dtype)
    state = np.empty(3 * LANES)
    for group in range(doubled.shape[0]):
        for concept in range(ap.shape[0]):
            on, off = rows_of(positives, concept), rows_of(pools, pool_of[concept])
            for i in range(on.size):
                for lane in range(LANES):
                    block[i * LANES + lane] = doubled[group, on[i], lane] | one
            for i in range(off.size):
                for lane in range(LANES):
                    block[(on.size + i) * LANES + lane] = doubled[group, off[i], lane]
            sort_lanes(block, on.size + off.size)
            walk_lanes(block, on.size + off.size, state)
            for lane in range(LANES):
                ap[concept, group * LANES + lane] = state[2 * LANES + lane] / on.size


@jit
def sort_lanes(block: Unsigned, rows: int) -> None:
    """Sort each lane of the first rows: Batcher's odd-even merge, for any number of rows (Knuth, 5.2.2, algorithm M).

    The comparisons of a step come in runs of neighbouring rows, so that a run is one loop for the vectoriser.
    """
    largest = 1
    while 2 * largest < rows:
        largest *= 2
    run = largest
    while run:
        merged, first, apart = largest, 0, run
        while True:
            for start in range(first, rows - apart, 2 * run):
                for i in range(start * LANES, min(start + run, rows - apart) * LANES):
                    low, high = block[i], block[i + apart * LANES]
                    block[i], block[i + apart * LANES] = min(low, high), max(low, high)
            if merged == run:
                break
            apart, merged, first = merged - run, merged // 2, run
        run //= 2


@jit
def walk_lanes(block: Unsigned, rows: int, state: Scores) -> None:
    """Walk all lanes at once, without a branch; state is (3, LANES): true, already counted, and the sum."""
    one = block.dtype.type(1)
    state[:] = 0
    for row in range(rows - 1, -1, -1):
        share, below = 1 / (rows - row), max(row - 1, 0) * LANES
        for lane in range(LANES):
            value, next_value = block[row * LANES + lane], block[below + lane]
            state[lane] += value & one
            closes = (value >> one != next_value >> one) | (row == 0)
            gain = (state[lane] - state[LANES + lane]) * closes
            state[LANES + lane] += gain
            state[2 * LANES + lane] += gain * state[lane] * share
