"""Time and memory of building corpora of up to 1 million sentences and 10,000 concepts, in one run.

A table with one row per label goes through ``expertmine concepts table`` in its own process, as users run it: 100
positives per concept, and 500 negatives from all sentences, partly shared with other concepts; or no negatives, and
``--negatives others``. Peak memory of the process is as reported by the operating system.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

LADDER = (100_000, 300_000, 1_000_000)
POSITIVES = 100
NEGATIVES = 500


def write_table(path: Path, sentences: int) -> int:
    """A table of labels, written in pieces; returns the number of its rows."""
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"word{i}" for i in range(5000)])
    words = rng.integers(0, len(vocabulary), (sentences, 12))
    texts = np.array([" ".join(vocabulary[row]) + f" {at}" for at, row in enumerate(words)], dtype=object)
    concepts = sentences // POSITIVES
    schema = pa.schema([("text", pa.string()), ("concept", pa.string()), ("label", pa.int8())])
    with pq.ParquetWriter(path, schema) as writer:
        for concept in range(concepts):
            positives = np.arange(concept * POSITIVES, (concept + 1) * POSITIVES)
            rows = np.concatenate([positives, rng.integers(0, sentences, NEGATIVES)])
            label = np.repeat(np.array([1, 0], np.int8), [POSITIVES, NEGATIVES])
            name = np.repeat(f"concept {concept:05d}", len(rows))
            writer.write_table(pa.table([texts[rows], name, label], schema=schema))
    return concepts * (POSITIVES + NEGATIVES)


def run(*arguments: object) -> tuple[float, float]:
    """Seconds and peak gigabytes of the command in its own process."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "expertmine", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return time.perf_counter() - started, usage.ru_maxrss / 1e6


@pytest.mark.parametrize("negatives", ["listed", "pool", "others"])
def test_ladder_of_sentences(negatives: str, tmp_path: Path) -> None:
    print(f"\nnegatives: {negatives}\nsentences  concepts       rows   seconds   per million rows   peak GB")
    for sentences in LADDER:
        table = tmp_path / f"{sentences}.parquet"
        rows = write_table(table, sentences)
        seconds, peak = run("concepts", "table", table, "--out", tmp_path / "corpus", "--negatives", negatives)
        figures = f"{seconds:>9.1f} {seconds / rows * 1e6:>18.1f} {peak:>9.2f}"
        print(f"{sentences:>9,} {sentences // POSITIVES:>9,} {rows:>10,} {figures}")
        assert peak < 3
        table.unlink()
