"""Plans runs for tests from a model, a corpus and settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from expertmine.corpus.reader import Corpus
from expertmine.mining.growth import begin
from expertmine.mining.planning import Bill, make_plan
from expertmine.specs.plan import Plan
from expertmine.specs.settings import Compression, PlanRequest, ResponseSpec


def request(
    model: Path, compression: Compression | None = None, scoring: dict[str, Any] | None = None, **responses: Any
) -> PlanRequest:
    spec = ResponseSpec(**{"max_tokens": 64, **responses})
    return PlanRequest(str(model), responses=spec, compression=compression or Compression(), scoring=scoring or {})


def plan_new(
    run: Path, model: Path, corpus: Path, partition_rows: int | None = 32, **responses: Any
) -> tuple[Plan, Bill]:
    """Plan a run and return it with its costs; partitions are small unless None is given."""
    opened = Corpus.open(corpus)
    plan, bill = make_plan(request(model, **responses), opened)
    if partition_rows is not None:
        plan = replace(plan, layout=replace(plan.layout, partition_rows=partition_rows))
    begin(run, plan, opened)
    return plan, bill
