"""What a run has promised and what it has done: the frozen plan, and one receipt for each finished task.

A task is finished when its receipt is there, never because a folder or a chunk is. Receipts are written last, by
temporary file and rename; those of another plan are refused; a torn one counts as not written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from expertmine.corpus import FILES, Corpus
from expertmine.errors import UserError
from expertmine.files import read_json, write_json, writing
from expertmine.specs import Plan

Stage = Literal["extract", "score"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a task is done."""

    stage: Stage
    task: int
    fingerprint: str
    """Of the plan that the task belongs to."""
    checksum: str
    """SHA-256 of the values the task wrote, as `expertmine.store` defines it."""
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)


def plan_path(run: Path) -> Path:
    return run / "plan.json"


def freeze(run: Path, plan: Plan, corpus: Corpus) -> None:
    """Make the run folder: a copy of the corpus, so that the run is whole in itself, and then the plan.

    Freezing the same plan again changes nothing.

    Raises:
        UserError: the folder holds another plan, or other files.
    """
    if plan_path(run).exists():
        if load_plan(run).fingerprint != plan.fingerprint:
            raise UserError(
                f"{plan_path(run)} is another plan (other model, corpus or settings); give another run folder, "
                "or remove this one to start anew"
            )
        return
    if run.exists() and any(path.name != "corpus" and not path.name.startswith(".") for path in run.iterdir()):
        raise UserError(f"{run} exists and is no run folder (it has no plan.json); give another one")
    if corpus.path.resolve() != (run / "corpus").resolve():
        with writing(run / "corpus"):
            (run / "corpus").mkdir(parents=True, exist_ok=True)
            for name in FILES:
                shutil.copy(corpus.path / name, run / "corpus")
    write_json(plan_path(run), plan.to_json())


def load_plan(run: Path) -> Plan:
    """The frozen plan of a run folder.

    Raises:
        UserError: there is none, or it was edited.
    """
    path = plan_path(run)
    document = read_json(path, "a run folder made by `expertmine plan` or `expertmine mine`")
    if not isinstance(document, dict):
        raise UserError(f"{path}: not a plan; plan the run again")
    return Plan.from_json(document, str(path))


def open_corpus(run: Path, plan: Plan) -> Corpus:
    """The run's own copy of its corpus.

    Raises:
        UserError: it is not the one that was planned.
    """
    corpus = Corpus.open(run / "corpus")
    if corpus.identity != plan.corpus:
        raise UserError(f"{corpus.path} is not the corpus of this run's plan; restore it, or plan a new run")
    return corpus


def write_receipt(run: Path, receipt: Receipt) -> None:
    write_json(_receipt_path(run, receipt.stage, receipt.task), asdict(receipt))


def read_receipts(run: Path, stage: Stage, tasks: int, fingerprint: str) -> Iterator[Receipt]:
    """The receipts of a stage that are there, by task.

    Raises:
        UserError: a receipt belongs to another plan.
    """
    for task in range(tasks):
        path = _receipt_path(run, stage, task)
        try:
            receipt = Receipt(**json.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            continue  # not written, or torn by a failing disk: the task runs again
        if receipt.fingerprint != fingerprint:
            raise UserError(f"{path} belongs to another plan; the run folder mixes two runs. Use a new run folder.")
        yield receipt


def missing_tasks(run: Path, stage: Stage, tasks: int, fingerprint: str) -> list[int]:
    """The tasks of a stage that have no receipt yet."""
    done = {receipt.task for receipt in read_receipts(run, stage, tasks, fingerprint)}
    return [task for task in range(tasks) if task not in done]


def require_complete(run: Path, stage: Stage, tasks: int, fingerprint: str) -> None:
    """Refuse to go on while a stage has tasks without receipt.

    Raises:
        UserError: names the first of them and the command that runs them.
    """
    if missing := missing_tasks(run, stage, tasks, fingerprint):
        first = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise UserError(
            f"{run}: {len(missing)} of {tasks} {stage} tasks are not done ({first}); run `expertmine {stage} {run}`"
        )


def _receipt_path(run: Path, stage: Stage, task: int) -> Path:
    return run / "receipts" / stage / f"{task:05d}.json"
