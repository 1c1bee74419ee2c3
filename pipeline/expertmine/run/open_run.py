"""A run folder, opened: where it is, and the frozen plan that it holds.

A run is opened once, by the command that works on it; stages, readers and workers are handed the `OpenRun`. A plan file
is read again only where the question is whether it still holds the same plan: see `require_current`, and
`expertmine.run.ledger.write_receipt`.
"""

from __future__ import annotations

from dataclasses import dataclass

from expertmine.corpus.reader import Corpus
from expertmine.errors import StageError, UserError
from expertmine.run import paths
from expertmine.specs.plan import Plan
from expertmine.storage.files import read_json
from expertmine.storage.locations import Location


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run folder and its plan; its name is that of the folder."""

    path: Location
    plan: Plan

    def __str__(self) -> str:
        return str(self.path)


def open_run(path: Location) -> OpenRun:
    """Read the frozen plan of a run folder.

    Raises:
        UserError: there is none, or it was edited.
    """
    file = paths.plan_file(path)
    document = read_json(file, "a run folder made by `expertmine plan` or `expertmine mine`")
    if not isinstance(document, dict):
        raise UserError(f"{file}: not a plan; plan the run again")
    return OpenRun(path, Plan.from_json(document, str(file)))


def require_current(run: OpenRun) -> None:
    """Check that the folder still holds the run's plan.

    For a worker that begins: its machine may not see the folder, and the run may have been planned again since.

    Raises:
        UserError: there is no plan, or it was edited.
        StageError: it is another plan.
    """
    if open_run(run.path).plan.fingerprint != run.plan.fingerprint:
        raise StageError(f"{run} was planned again since this stage began; rerun the command")


def open_corpus(run: OpenRun) -> Corpus:
    """The run's own copy of its corpus.

    Raises:
        UserError: it is not the one that was planned.
    """
    corpus = Corpus.open(paths.corpus_folder(run.path, run.plan.corpus))
    if corpus.identity != run.plan.corpus:
        raise UserError(f"{corpus.path} is not the corpus of this run's plan; restore it, or plan a new run")
    return corpus
