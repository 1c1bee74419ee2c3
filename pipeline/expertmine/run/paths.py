"""Where everything is in a run folder: the only module that spells these names.

Knows no file's contents. The names of an expert index are the index's own (`expertmine.index.names`).
"""

from __future__ import annotations

import re

from expertmine.index import names
from expertmine.specs.identity import CorpusIdentity
from expertmine.specs.plan import PLAN_FILE, Plan, Stage
from expertmine.specs.settings import Pooling
from expertmine.storage.locations import Location

NULL, ASSESSMENT, SELECTION = "null", "assessment", "selection"
"""Kinds of tables beside the store."""
_CORPUS, _SENTENCES, _LEASES = "corpus", "sentences", "lock"
BEFORE_THE_PLAN = frozenset({_CORPUS, _SENTENCES, _LEASES})
"""Folders that may be there before a plan is: an interrupted beginning leaves them."""


def plan_file(run: Location) -> Location:
    return run / PLAN_FILE


def corpus_folder(run: Location, identity: CorpusIdentity) -> Location:
    """Where a run keeps its own copy of a corpus."""
    return run / _CORPUS / identity.fingerprint[:16]


def sentences_file(run: Location, segment: int) -> Location:
    """Keys and texts of the sentences of one segment."""
    return run / _SENTENCES / f"{segment:05d}.parquet"


def store_folder(run: Location) -> Location:
    return run / "store.zarr"


def receipts_folder(run: Location, stage: Stage) -> Location:
    return run / "receipts" / stage


def receipt_file(run: Location, stage: Stage, task: int) -> Location:
    return receipts_folder(run, stage) / _task(task)


def failures_folder(run: Location, stage: Stage) -> Location:
    return run / "failures" / stage


def failure_file(run: Location, stage: Stage, task: int) -> Location:
    return failures_folder(run, stage) / _task(task)


def workers_folder(run: Location) -> Location:
    """What each worker last said it was doing."""
    return run / "workers"


def worker_file(run: Location, stage: Stage, worker: str) -> Location:
    return workers_folder(run) / f"{stage}-{worker}.json"


def attempts_folder(run: Location) -> Location:
    """A record of each attempt to run a stage."""
    return workers_folder(run) / "drivers"


def attempt_file(run: Location, stage: Stage, process: str, began: float) -> Location:
    return attempts_folder(run) / f"{began:.3f}-{stage}-{process}.json"


def leases_folder(run: Location) -> Location:
    return run / _LEASES


def lease_file(run: Location, term: int) -> Location:
    return leases_folder(run) / f"{term:08d}.json"


def is_lease_file(path: Location) -> bool:
    return re.fullmatch(r"\d{8}\.json", path.name) is not None


def tables_folder(run: Location, kind: str) -> Location:
    """All tables of a kind: `NULL`, `ASSESSMENT` or `SELECTION`."""
    return run / kind


def table_key(kind: str, pooling: Pooling, block: int) -> str:
    """A table's path in the run folder, by which receipts name it."""
    return f"{kind}/{pooling}/{block:05d}.parquet"


def index_folder(run: Location, plan: Plan, pooling: Pooling) -> Location:
    """Where the expert index of one of the plan's poolings is."""
    return names.index_folder(run, None if pooling == plan.responses.poolings[0] else pooling)


def evaluation_folder(run: Location, pooling: str) -> Location:
    """Results of evaluations of one pooling's experts."""
    return run / "evaluation" / pooling


def _task(task: int) -> str:
    return f"{task:05d}.json"
