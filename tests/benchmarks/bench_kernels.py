"""Kernels against scikit-learn's average_precision_score on the same arrays, one thread, as ratios in one run.

scikit-learn gives average precision alone and is handed its scores already gathered; ours is charged with everything:
ranks, gathering, AUROC, means and percentiles. Run by `make bench`; `pytest tests` does not collect it.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from expertmine_kernels import ConceptRows, average_precision, expertise

ROUNDS = 7
LINE = "{:<66} {:>9} {:>9} {:>6} {:>6}"


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[list[str]]:
    """Collect one line per benchmark and print them together."""
    lines = [LINE.format("microseconds per (concept, unit)", "sklearn", "ours", "ratio", "target")]
    yield lines
    print("", *lines, sep="\n")


def responses(sentences: int, units: int, dtype: type) -> Any:
    """Draw responses (sentences, units) in unit-major memory, as the store's chunks are."""
    return np.random.default_rng(0).standard_normal((units, sentences)).astype(dtype).T


def concepts(count: int, positives: int, sentences: int, *, shared: bool) -> ConceptRows:
    """Draw concepts of random positives with 1,000 negatives each: the first sentences for all, or their own."""
    draws = np.random.default_rng(1)
    on, off = [], []
    for _ in range(count):
        rows = draws.permutation(np.arange(1000 if shared else 0, sentences))
        on.append(rows[:positives])
        off.append(np.arange(1000) if shared else rows[positives : positives + 1000])
    return ConceptRows.from_lists(on, off)


def concepts_of_a_pool(count: int, positives: int, removed: int, pool: int, sentences: int) -> ConceptRows:
    """Draw concepts that remove from one pool, the first sentences, as many rows, all of them among the positives."""
    draws = np.random.default_rng(1)
    on, out = [], []
    for _ in range(count):
        out.append(draws.choice(pool, removed, replace=False))
        beyond = pool + draws.choice(max(sentences - pool, 1), positives - removed, replace=False)
        on.append(np.concatenate([out[-1], beyond]))
    return ConceptRows.from_pools(on, [np.arange(pool)], np.zeros(count, int), out)


def with_own_lists(rows: ConceptRows, count: int) -> ConceptRows:
    """Return the first concepts with their negatives written out, concept by concept."""
    first = range(count)
    return ConceptRows.from_lists([rows.positives(c) for c in first], [rows.negatives(c) for c in first])


def seconds(function: Callable[[], Any]) -> float:
    """Return the shortest time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(block: Any, rows: ConceptRows, ours: Callable[[], Any]) -> tuple[float, float]:
    """Return microseconds per (concept, unit) of scikit-learn, on a sample of them, and of ours; rounds interleaved."""
    pairs = [(i % rows.concepts, i % block.shape[1]) for i in range(20)]
    cases = []
    for concept, unit in pairs:
        on, off = rows.positives(concept), rows.negatives(concept)
        labels = np.repeat([1, 0], [on.size, off.size])
        cases.append((labels, np.concatenate([block[on, unit], block[off, unit]])))
    ours()
    theirs_best = ours_best = np.inf
    for _ in range(ROUNDS):
        theirs = seconds(lambda: [average_precision_score(*case) for case in cases])
        theirs_best = min(theirs_best, theirs / len(cases))
        ours_best = min(ours_best, seconds(ours) / (rows.concepts * block.shape[1]))
    return theirs_best * 1e6, ours_best * 1e6


def report(table: list[str], name: str, theirs: float, ours: float, target: float) -> None:
    """Add a line to the table; fail when the ratio is under its target."""
    table.append(LINE.format(name, f"{theirs:.1f}", f"{ours:.2f}", f"{theirs / ours:.0f}", target))
    assert theirs / ours > target


@pytest.mark.parametrize(
    ("name", "dtype", "shared", "positives", "count", "target"),
    [
        ("1,000 positives, 1,000 own negatives, float16", np.float16, False, 1000, 100, 80),
        ("200 positives, shared pool of 1,000, float16", np.float16, True, 200, 1000, 600),
        ("1,000 positives, shared pool of 1,000, float16", np.float16, True, 1000, 300, 170),
        ("1,000 positives, 1,000 own negatives, float32", np.float32, False, 1000, 100, 80),
        ("200 positives, shared pool of 1,000, float32", np.float32, True, 200, 1000, 400),
    ],
)
def test_expertise_of_many_concepts(
    table: list[str], name: str, dtype: type, shared: bool, positives: int, count: int, target: float
) -> None:
    block = responses(10_000, 64, dtype)
    rows = concepts(count, positives, 10_000, shared=shared)
    theirs, ours = compare(block, rows, lambda: expertise(block, rows))
    report(table, f"{name}, {count} concepts", theirs, ours, target)


@pytest.mark.parametrize(
    ("name", "dtype", "removed", "pool", "sentences", "target", "target_of_own"),
    [
        ("200 positives, pool of 1,000 less 20, float16", np.float16, 20, 1000, 10_000, 400, 2),
        ("200 positives, pool of 1,000 less 20, float32", np.float32, 20, 1000, 10_000, 350, 2),
        ("200 positives, all 19,800 others, float16", np.float16, 200, 20_000, 20_000, 1500, 12),
        ("200 positives, all 19,800 others, float32", np.float32, 200, 20_000, 20_000, 1000, 12),
    ],
)
def test_expertise_of_concepts_that_remove_rows(
    table: list[str],
    name: str,
    dtype: type,
    removed: int,
    pool: int,
    sentences: int,
    target: float,
    target_of_own: float,
) -> None:
    block = responses(sentences, 64, dtype)
    rows = concepts_of_a_pool(1000, 200, removed, pool, sentences)
    own = with_own_lists(rows, 50)
    theirs, ours = compare(block, rows, lambda: expertise(block, rows))
    _, ours_of_own = compare(block, own, lambda: expertise(block, own))
    report(table, f"{name}, 1000 concepts", theirs, ours, target)
    table.append(f"  with the same negatives as own lists: {ours_of_own:.2f}, {ours_of_own / ours:.1f} times ours")
    assert ours_of_own / ours > target_of_own


def test_checking_many_concepts_of_a_large_pool(table: list[str]) -> None:
    taken = seconds(lambda: concepts_of_a_pool(10_000, 300, 300, 1_000_000, 1_000_000))
    table.append(f"rows of 10,000 concepts, 300 removed from a pool of 1,000,000, drawn and checked: {taken:.2f} s")
    assert taken < 4


@pytest.mark.parametrize(
    ("name", "dtype", "order", "target"),
    [
        ("unit-major float16", np.float16, "F", 80),
        ("sentence-major float16", np.float16, "C", 55),
        ("unit-major float32", np.float32, "F", 25),
    ],
)
def test_average_precision_of_one_concept(table: list[str], name: str, dtype: type, order: Any, target: float) -> None:
    block = np.array(responses(2000, 1024, dtype), order=order)
    rows = concepts(1, 1000, 2000, shared=False)
    labels = np.isin(np.arange(2000), rows.positives(0))
    theirs, ours = compare(block, rows, lambda: average_precision(block, labels))
    report(table, f"average_precision of 1,000 + 1,000, {name}", theirs, ours, target)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_first_call_in_a_new_process(table: list[str], dtype: str) -> None:
    script = (
        "import time, numpy as np, expertmine_kernels as kernels; start = time.perf_counter();"
        f"kernels.average_precision(np.arange(4, dtype='{dtype}'), [0, 1, 0, 1]); print(time.perf_counter() - start)"
    )
    path = "; ".join(f"sys.path.append({entry!r})" for entry in sys.path if entry)
    run = subprocess.run([sys.executable, "-c", f"import sys; {path}; {script}"], check=True, capture_output=True)
    taken = float(run.stdout)
    table.append(f"first call in a new process, {dtype}, compilation included: {taken:.2f} s")
    assert taken < 10
