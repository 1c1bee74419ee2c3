"""Compares the kernel of expertise with alternatives: one thread, one table, one run.

The alternatives do less work: they are given float16 responses as uint16 order keys and compute only average precision,
while ours starts from the responses and computes six statistics. So the table has ours a second time, with the same
input and output as the others: this line compares the methods.

Some alternatives are fast under restrictions that ours does not have: the table and the radix sort's two passes need
16-bit keys; the sorting network needs wide vectors, at most 32,768 levels and few rows, and is the fastest for 100 +
100. Run by `make bench`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from expertmine_kernels import ConceptRows, expertise, order_keys
from expertmine_kernels.bitmap import smaller
from expertmine_kernels.expertise import Sets, _empty_tally, _tally
from expertmine_kernels.jit import jit
from expertmine_kernels.ranks import Ranked, rank_units
from tests.benchmarks.bench_kernels import concepts, responses, seconds

Scores = NDArray[np.float64]
Rows = NDArray[np.int32]
Scratch = NDArray[np.uint32]
Unsigned = NDArray[np.unsignedinteger[Any]]
PairKernel = Callable[[Unsigned, Rows, Rows, Scratch], float]

ROUNDS = 5
UNITS = 64
LANES = 32
LINE = "{:<39} {:<44} {:>6} {:>6}"


class Sides(NamedTuple):
    """The parts of ConceptRows that the kernels need, since Numba does not know the class."""

    positives: Sets
    pools: Sets
    pool_of: Rows


def sides(rows: ConceptRows) -> Sides:
    return Sides(Sets(rows.positive_indptr, rows.positive_rows), Sets(rows.pool_indptr, rows.pool_rows), rows.pool_of)


@jit
def rows_of(which: Sets, number: int) -> Rows:
    """Return one of the sets."""
    return which.rows[which.indptr[number] : which.indptr[number + 1]]


# One pair at a time: gather the pair's values with their labels, order them, walk them.


def pair_by_pair(kernel: PairKernel, values: Unsigned, limits: NDArray[np.int64], rows: ConceptRows) -> Scores:
    """Call a kernel for each pair, with scratch (4, limit of the unit)."""
    ap = np.empty((rows.concepts, len(values)))
    fill_pair_by_pair(kernel, values, limits, sides(rows), ap)
    return ap


@jit
def fill_pair_by_pair(
    kernel: PairKernel, values: Unsigned, limits: NDArray[np.int64], sides: Sides, ap: Scores
) -> None:
    for unit in range(values.shape[0]):
        scratch = np.empty((4, limits[unit]), np.uint32)
        for concept in range(ap.shape[0]):
            on, off = rows_of(sides.positives, concept), rows_of(sides.pools, sides.pool_of[concept])
            ap[concept, unit] = kernel(values[unit], on, off, scratch)


@jit
def gather(values: Unsigned, on: Rows, off: Rows, into: Scratch) -> None:
    """Fill into with the values of the rows, doubled, plus one where the row is positive."""
    for i in range(on.size):
        into[i] = np.uint32(values[np.uint32(on[i])]) << np.uint32(1) | np.uint32(1)
    for i in range(off.size):
        into[on.size + i] = np.uint32(values[np.uint32(off[i])]) << np.uint32(1)


@jit
def walk(ordered: Scratch, positives: int) -> float:
    """Return the average precision of gathered values in ascending order."""
    total, true, counted = 0.0, 0, 0
    for i in range(ordered.size - 1, -1, -1):
        true += ordered[i] & np.uint32(1)
        if i == 0 or ordered[i] >> np.uint32(1) != ordered[i - 1] >> np.uint32(1):
            total += (true - counted) * true / (ordered.size - i)
            counted = true
    return total / positives


@jit
def by_comparison(values: Unsigned, on: Rows, off: Rows, scratch: Scratch) -> float:
    ordered = scratch[0, : on.size + off.size]
    gather(values, on, off, ordered)
    ordered.sort()
    return walk(ordered, on.size)


@jit
def radix_sort_labelled(ordered: Scratch, scratch: Scratch) -> None:
    """Sort gathered values by 16 bits, in two passes of 8; the label bit below does not matter."""
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
def by_radix(values: Unsigned, on: Rows, off: Rows, scratch: Scratch) -> float:
    ordered = scratch[0, : on.size + off.size]
    gather(values, on, off, ordered)
    radix_sort_labelled(ordered, scratch)
    return walk(ordered, on.size)


@jit
def by_counting(ranks: Unsigned, on: Rows, off: Rows, scratch: Scratch) -> float:
    """Count how often each level of the unit occurs, without sorting, then walk all levels from the top."""
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
    """NumPy's sort, which has vector instructions: one call per change of pool and per concept orders all units."""
    positives, pools, pool_of = sides(rows)
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
    fill_by_table(keys, sides(rows), ap)
    return ap


@jit
def fill_by_table(keys: Unsigned, sides: Sides, ap: Scores) -> None:
    """Count once per unit and pool the negatives at or above each of the 65,536 keys; sort positives only."""
    at_or_above = np.empty(1 << 16, np.uint32)
    scratch = np.empty((4, max(keys.shape[1], 256)), np.uint32)
    for unit in range(keys.shape[0]):
        pool = -1
        for concept in range(ap.shape[0]):
            if sides.pool_of[concept] != pool:
                pool = sides.pool_of[concept]
                at_or_above[:] = 0
                for row in rows_of(sides.pools, pool):
                    at_or_above[keys[unit, row]] += np.uint32(1)
                for key in range(at_or_above.size - 2, -1, -1):
                    at_or_above[key] += at_or_above[key + 1]
            on = rows_of(sides.positives, concept)
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


def network(keys: Unsigned, rows: ConceptRows) -> Scores:
    """Sort ranks, which leave a bit of 16 for the label while a unit has at most 32,768 levels; LANES units at once."""
    ranks = rank_units(keys).ranks.astype(np.uint16) << 1
    units, sentences = ranks.shape
    by_row = np.ascontiguousarray(ranks.reshape(units // LANES, LANES, sentences).transpose(0, 2, 1))
    ap = np.empty((rows.concepts, units))
    fill_by_network(by_row, sides(rows), ap)
    return ap


@jit
def fill_by_network(doubled: Unsigned, sides: Sides, ap: Scores) -> None:
    """Fill ap (concepts, units) from doubled ranks (units / LANES, sentences, LANES)."""
    block = np.empty(doubled.shape[1] * LANES, np.uint16)
    state = np.empty((3, LANES))
    for group in range(doubled.shape[0]):
        for concept in range(ap.shape[0]):
            on, off = rows_of(sides.positives, concept), rows_of(sides.pools, sides.pool_of[concept])
            size = on.size + off.size
            for i in range(size):
                row, label = (on[i], np.uint16(1)) if i < on.size else (off[i - on.size], np.uint16(0))
                for lane in range(LANES):
                    block[i * LANES + lane] = doubled[group, row, lane] | label
            sort_lanes(block, size)
            walk_lanes(block, size, state)
            ap[concept, group * LANES : (group + 1) * LANES] = state[2] / on.size


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
            gap = np.uint64(apart * LANES)
            for start in range(first, rows - apart, 2 * run):
                below = np.uint64(start * LANES)
                for i in range((min(start + run, rows - apart) - start) * LANES):
                    i_low = below + np.uint64(i)
                    low, high = block[i_low], block[i_low + gap]
                    block[i_low] = low if low < high else high
                    block[i_low + gap] = high if low < high else low
            if merged == run:
                break
            apart, merged, first = merged - run, merged // 2, run
        run //= 2


@jit
def walk_lanes(block: Unsigned, rows: int, state: Scores) -> None:
    """Walk all lanes at once, without a branch; state is (3, LANES): true, already counted, and the sum."""
    one = np.uint16(1)
    state[:] = 0
    for row in range(rows - 1, -1, -1):
        share, here, below = 1 / (rows - row), np.uint64(row * LANES), np.uint64(max(row - 1, 0) * LANES)
        for lane in range(LANES):
            value, lower = block[here + np.uint64(lane)], block[below + np.uint64(lane)]
            state[0, lane] += value & one
            gain = state[0, lane] - state[1, lane] if (value >> one != lower >> one) | (row == 0) else 0.0
            state[1, lane] += gain
            state[2, lane] += gain * state[0, lane] * share


# Our own method, with nothing but what the others give.


def ours_alone(keys: Unsigned, rows: ConceptRows) -> Scores:
    ap = np.empty((rows.concepts, len(keys)))
    fill_by_bitmaps(rank_units(keys), sides(rows), ap)
    return ap


@jit
def fill_by_bitmaps(ranked: Ranked, sides: Sides, ap: Scores) -> None:
    sentences = ranked.ranks.shape[1]
    positive = _empty_tally(sentences, sides.positives.indptr)
    negative = _empty_tally(sentences, sides.pools.indptr)
    for unit in range(ap.shape[1]):
        ranks, limit, pool, negatives = ranked.ranks[unit], ranked.level_counts[unit], -1, 0
        for concept in range(ap.shape[0]):
            if sides.pool_of[concept] != pool:
                pool, negatives = sides.pool_of[concept], 0
                distinct = _tally(negative, ranks, limit, rows_of(sides.pools, pool))
                for i in range(distinct):
                    negative.below[i] = negatives
                    negatives += negative.counts[i]
                negative.below[distinct] = negatives
            on = rows_of(sides.positives, concept)
            total, below = 0.0, 0
            for i in range(_tally(positive, ranks, limit, on)):
                true, place = on.size - below, smaller(negative.words, negative.before, positive.levels[i])
                total += positive.counts[i] * true / (true + negatives - negative.below[place])
                below += positive.counts[i]
            ap[concept, unit] = total / on.size


Alternative = Callable[[Unsigned, ConceptRows], Scores]

OURS, OURS_ALONE = "ours, six statistics", "ours, average precision alone"
ALTERNATIVES: dict[str, Alternative] = {
    "comparison sort of each pair": comparison_sort,
    "radix sort of each pair": radix,
    "NumPy's vector sort of each side": numpy_sort,
    "counts over all levels, no bitmap": counting,
    "sorting network, 32 units at once": network,
}
OF_A_POOL: dict[str, Alternative] = {"table of the pool, radix sort of positives": table_of_the_pool}
ALL = {OURS_ALONE: ours_alone, **ALTERNATIVES, **OF_A_POOL}


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[list[str]]:
    """Collect one line per setting and alternative and print them together."""
    lines = [LINE.format("microseconds per (concept, unit)", "", "time", "ratio")]
    yield lines
    print("", *lines, sep="\n")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_alternatives_equal_scikit_learn(name: str, shared: bool) -> None:
    block = responses(1500, UNITS, np.float16)
    block[:, ::2] = block[:, ::2].round(1)  # ties, within a side and across
    rows = concepts(3, 200, 1500, shared=shared)
    ap = ALL[name](order_keys(block.T), rows)
    for concept in range(rows.concepts):
        on, off = rows.positives(concept), rows.negatives(concept)
        labels = np.repeat([1, 0], [on.size, off.size])
        for unit in (0, 1, 31, 32, 63):
            expected = average_precision_score(labels, block[np.concatenate([on, off]), unit])
            assert abs(ap[concept, unit] - expected) < 1e-12


@pytest.mark.parametrize(
    ("name", "positives", "negatives", "shared", "count", "fastest"),
    [
        ("100 positives, 100 own negatives", 100, 100, False, 500, False),
        ("1,000 positives, 1,000 own negatives", 1000, 1000, False, 100, True),
        ("200 positives, shared pool of 1,000", 200, 1000, True, 300, True),
        ("1,000 positives, shared pool of 1,000", 1000, 1000, True, 150, True),
    ],
)
def test_alternatives(
    table: list[str], name: str, positives: int, negatives: int, shared: bool, count: int, fastest: bool
) -> None:
    """Add the setting to the table; fail when our method is not the fastest where it should be.

    It is compared at average precision alone: with six statistics ours may take longer than a method that gives one.
    """
    block = responses(10_000, UNITS, np.float16)
    sentence_major, keys = np.ascontiguousarray(block), order_keys(block.T)
    rows = concepts(count, positives, 10_000, shared=shared)
    if negatives < 1000:
        thinned = [rows.negatives(c)[:: 1000 // negatives] for c in range(count)]
        rows = ConceptRows.from_lists([rows.positives(c) for c in range(count)], thinned)
    others = {**ALTERNATIVES, **OF_A_POOL} if shared else ALTERNATIVES
    calls: dict[str, Callable[[], Any]] = {
        OURS: partial(expertise, block, rows),
        "ours, six statistics, sentence-major memory": partial(expertise, sentence_major, rows),
        OURS_ALONE: partial(ours_alone, keys, rows),
        **{other: partial(function, keys, rows) for other, function in others.items()},
    }
    best = dict.fromkeys(calls, np.inf)
    for call in calls.values():
        call()  # compiles it
    for _ in range(ROUNDS):
        for what, call in calls.items():
            best[what] = min(best[what], seconds(call) / (count * UNITS) * 1e6)
    table += [LINE.format(name, what, f"{time:.2f}", f"{time / best[OURS]:.2f}") for what, time in best.items()]
    if fastest:
        assert best[OURS_ALONE] < min(best[other] for other in others)
