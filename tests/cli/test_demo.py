"""The demo that `make demo` runs, on fewer concepts."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.commands import succeed

from expertmine.cli.demo import LADDER, SHOWN
from expertmine.index.experts import Experts
from expertmine.runtime import ray


@pytest.mark.slow
def test_the_demo_mines_shows_and_steers(ray_address: str, tmp_path: Path) -> None:
    run = tmp_path / "demo"
    with ray.cluster(ray_address):
        printed = succeed("demo", "--out", run, "--concepts", 20)
    experts = Experts.load(run)
    assert len(experts) >= 20
    assert set(SHOWN) <= set(experts)
    assert printed.count("unsteered") == printed.count(f"k = {LADDER[-1]}") == len(SHOWN)
    assert printed.count(str(run)) == 7  # where the run is, and six commands to try
    # Experts found on mined sentences detect their concept on sentences that mining did not see.
    table = pq.read_table(run / "experts" / "experts.parquet").to_pylist()
    for name in SHOWN:
        counts = next(concept for concept in experts.metadata["concepts"] if concept["name"] == name)
        prevalence = counts["positives"] / (counts["positives"] + counts["negatives"])
        best = [row["held_out_ap"] for row in table if row["concept"] == name][:5]
        assert min(best) > prevalence + 0.1, name
