"""Compares the kernels with scikit-learn's average_precision_score on the same arrays, one thread, ratios in one run.

scikit-learn computes only average precision and is given gathered scores; our time includes everything: ranks,
gathering, AUROC, means and percentiles. Run by `make bench`; `pytest tests` does not collect it.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.kernel_cases import CASES, KernelCase, as_own_lists, draw_pool

from expertmine_kernels import ConceptRows

ROUNDS = 7
LINE = "{:<66} {:>9} {:>9} {:>6} {:>6}"


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[list[str]]:
    """Collect one line per benchmark and print them together."""
    lines = [LINE.format("microseconds per (concept, unit)", "sklearn", "ours", "ratio", "target")]
    yield lines
    print("", *lines, sep="\n")


def seconds(function: Callable[[], Any]) -> float:
    """Return the time of the fastest call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(case: KernelCase, block: Any, rows: ConceptRows) -> tuple[float, float]:
    """Return microseconds per (concept, unit) of the oracle, on a sample of them, and of ours; rounds interleaved."""
    sample = []
    for concept, unit in [(i % rows.concepts, i % block.shape[1]) for i in range(20)]:
        on, off = rows.positives(concept), rows.negatives(concept)
        labels = np.repeat([1, 0], [on.size, off.size])
        sample.append((labels, np.concatenate([block[on, unit], block[off, unit]])))
    ours = case.kernel(block, rows)
    ours()
    theirs_best = ours_best = np.inf
    for _ in range(ROUNDS):
        theirs = seconds(lambda: [case.oracle(*labels_and_scores) for labels_and_scores in sample])
        theirs_best = min(theirs_best, theirs / len(sample))
        ours_best = min(ours_best, seconds(ours) / (rows.concepts * block.shape[1]))
    return theirs_best * 1e6, ours_best * 1e6


def report(table: list[str], name: str, theirs: float, ours: float, target: float) -> None:
    """Add a line to the table; fail when the ratio is under its target."""
    table.append(LINE.format(name, f"{theirs:.1f}", f"{ours:.2f}", f"{theirs / ours:.0f}", target))
    assert theirs / ours > target


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_kernel_is_faster_than_its_oracle(table: list[str], case: KernelCase) -> None:
    block, rows = case.draw(case.concepts, case.units)
    theirs, ours = compare(case, block, rows)
    report(table, f"{case.name}, {case.concepts} concepts", theirs, ours, case.target)
    if case.lists_target is not None:
        _, of_lists = compare(case, block, as_own_lists(rows, 50))
        table.append(f"  with the same negatives as own lists: {of_lists:.2f}, {of_lists / ours:.1f} times ours")
        assert of_lists / ours > case.lists_target


def test_checking_many_concepts_of_a_large_pool(table: list[str]) -> None:
    taken = seconds(lambda: draw_pool(10_000, 300, 1_000_000, removed=300, pool=1_000_000))
    table.append(f"rows of 10,000 concepts, 300 removed from a pool of 1,000,000, drawn and checked: {taken:.2f} s")
    assert taken < 4


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
