"""Scoring as a stage: its time by part, its growth, the speed-up of two workers, and its memory budget.

Responses are made up; everything else is as in a run: Zarr, labels, kernels, receipts. Run by `make bench`; `pytest
tests` does not collect it.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support.made_runs import make_corpus, make_run

from expertmine.mining import assess, score
from expertmine.mining.mine import run_reduce
from expertmine.mining.stage import WorkerOptions
from expertmine.run.ledger import forget_receipts, read_receipts
from expertmine.run.open_run import open_run
from expertmine.runtime import dask
from expertmine.runtime.serial import SerialExecutor

ROUNDS = 5


def seconds_of_score(run: Path) -> float:
    """One process, one thread, with labels prepared and kernels compiled."""
    make = score.new_worker(open_run(run), WorkerOptions())
    forget_receipts(run, "score")
    tasks = score.plan(open_run(run))
    scorer = make()
    started = time.perf_counter()
    for _ in SerialExecutor().run(lambda: scorer, tasks):
        pass
    return time.perf_counter() - started


def parts(run: Path) -> Counter[str]:
    """Milliseconds of all tasks, by part."""
    total: Counter[str] = Counter()
    for receipt in read_receipts(open_run(run), "score"):
        total.update({name: count for name, count in receipt.counts.items() if name.endswith("_ms")})
        total["all"] += round(1000 * receipt.seconds)
    return total


@pytest.mark.parametrize("permutations", [20, 0])
def test_most_of_the_time_is_spent_in_kernels(permutations: int, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts=20_000, concepts=500, positives=200, pool=500)
    run = tmp_path / "run"
    plan = make_run(run, corpus, units=4096, permutations=permutations, resamples=0)
    taken = [seconds_of_score(run) for _ in range(ROUNDS)]
    found = parts(run)
    shares = {name: found[name] / found["all"] for name in ("read_ms", "kernel_ms", "write_ms")}
    pairs = plan.corpus.concepts * plan.layout.units / min(taken)
    print(
        f"\n500 concepts of 700 sentences, 20,000 sentences, 4,096 units, {permutations} permutations: "
        f"{min(taken):.1f} s, {pairs:,.0f} pairs/s;",
        ", ".join(f"{name.removesuffix('_ms')} {share:.0%}" for name, share in shares.items()),
    )
    assert shares["kernel_ms"] >= 0.6


@pytest.mark.parametrize("what, ladder", [
    ("concepts", [250, 500, 1000]), ("units", [2048, 4096, 8192]), ("sentences", [10_000, 20_000, 40_000]),
])  # fmt: skip
def test_doubling_doubles_at_most(what: str, ladder: list[int], tmp_path: Path) -> None:
    """Twice the concepts, units or sentences take at most twice the time, up to this machine's noise."""
    runs = []
    for value in ladder:
        size = {"concepts": 500, "units": 2048, "sentences": 20_000, what: value}
        corpus = make_corpus(tmp_path / f"corpus {value}", size["sentences"], size["concepts"], 100, 500)
        runs.append(tmp_path / f"run {value}")
        make_run(runs[-1], corpus, size["units"], resamples=20)
    rounds = [[_all_of_scoring(run) for run in runs] for _ in range(ROUNDS)]
    best = [tuple(min(each) for each in zip(*of_run, strict=True)) for of_run in zip(*rounds, strict=True)]
    print(f"\n{what:>10}      score     assess     reduce   seconds, one process")
    for value, taken in zip(ladder, best, strict=True):
        print(f"{value:>10,} " + " ".join(f"{each:>10.2f}" for each in taken))
    for fewer, more in itertools.pairwise(best):
        assert sum(more) < 2.2 * sum(fewer)


def _all_of_scoring(run: Path) -> tuple[float, float, float]:
    scored = seconds_of_score(run)
    forget_receipts(run, "assess")
    started = time.perf_counter()
    for _ in SerialExecutor().run(assess.new_worker(open_run(run), WorkerOptions()), assess.plan(open_run(run))):
        pass
    assessed = time.perf_counter()
    run_reduce(run, 100)
    return scored, assessed - started, time.perf_counter() - assessed


def test_two_workers_are_almost_twice_as_fast_as_one(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts=20_000, concepts=500, positives=200, pool=1000)
    run = tmp_path / "run"
    make_run(run, corpus, units=16_384, block_units=256, resamples=0)
    tasks = range(open_run(run).plan.layout.blocks)
    score.plan(open_run(run))
    taken: dict[int, list[float]] = {1: [], 2: []}
    with dask.cluster(None, 1) as one, dask.cluster(None, 2) as two:
        for client in (one, two):  # have workers load and compile what they need
            list(dask.DaskExecutor(client).run(score.new_worker(open_run(run), WorkerOptions()), tasks[:4]))
        for _ in range(ROUNDS):
            for workers, client in ((1, one), (2, two)):
                started = time.perf_counter()
                list(dask.DaskExecutor(client).run(score.new_worker(open_run(run), WorkerOptions()), tasks))
                taken[workers].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(taken[1], taken[2], strict=True)]
    print(
        f"\n{len(tasks)} blocks: {min(taken[1]):.1f} s with one worker, {min(taken[2]):.1f} s with two; ratios",
        ", ".join(f"{ratio:.2f}" for ratio in ratios),
    )
    assert statistics.median(ratios) >= 1.7


WORKER = """
import sys
from pathlib import Path
from expertmine import assess, score
run, memory, stage = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
worker = {"score": score.Scorer, "assess": assess.Assessor}[stage](open_run(run), memory)
for task in map(int, sys.argv[4].split()):
    worker(task)
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak, worker.strip_units)
"""


def peak_megabytes(run: Path, megabytes: int, stage: str, tasks: list[int]) -> tuple[float, int]:
    """The peak memory of a separate worker process, and the number of units it scored at once."""
    command = [sys.executable, "-c", WORKER, run, megabytes * 10**6, stage, " ".join(map(str, tasks))]
    # The kernel's ru_maxrss would begin with what this process held when it forked.
    peak, units = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.split()
    return int(peak) * 1024 / 1e6, int(units)


@pytest.mark.parametrize("megabytes", [500, 800, 2000])
def test_a_process_keeps_to_its_memory_budget(megabytes: int, tmp_path: Path) -> None:
    """A block that fits the budget is scored whole; a block planned for more memory is scored in strips."""
    corpus = make_corpus(tmp_path / "corpus", texts=300_000, concepts=1000, positives=200, pool=1000)
    print()
    for planned in (4000, megabytes):
        run = tmp_path / f"run planned for {planned}"
        make_run(run, corpus, units=2048, memory=planned * 10**6)
        width = open_run(run).plan.layout.block_units
        score.plan(open_run(run))
        for stage in ("score", "assess"):
            if stage == "assess":
                list(
                    SerialExecutor().run(
                        score.new_worker(open_run(run), WorkerOptions(memory=10**10)), score.plan(open_run(run))
                    )
                )
                assess.plan(open_run(run))
            peak, units = peak_megabytes(run, megabytes, stage, [0, 1])
            print(
                f"{stage}: {open_run(run).plan.layout.sentences:,} sentences, 1,000 concepts, blocks of {width} units "
                f"planned for {planned} MB; {megabytes} MB given: {units} units at once, peak {peak:.0f} MB"
            )
            assert peak <= megabytes
