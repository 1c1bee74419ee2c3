"""Write the plan of a run folder: its first one, or one that replaces it."""

from __future__ import annotations

from collections.abc import Sequence

from expertmine.corpus.reader import FILES, Corpus
from expertmine.errors import UserError
from expertmine.run import lease, paths
from expertmine.run.ledger import forget_receipts
from expertmine.specs.plan import Plan, Stage
from expertmine.storage.files import children, copy, remove_folder, write_json
from expertmine.storage.locations import Location, same


def require_new_folder(run: Location) -> None:
    """Refuse to plan a run in a folder that holds other things.

    Raises:
        UserError: the folder holds more than an interrupted start leaves.
    """
    if any(path.name not in paths.BEFORE_THE_PLAN and not path.name.startswith(".") for path in children(run)):
        raise UserError(f"{run} exists and is no run folder (it has no plan.json); give another one")


def freeze(run: Location, plan: Plan, corpus: Corpus, again: Sequence[Stage] = ()) -> None:
    """Write a plan, after the run's own copy of its corpus, so that the run is whole in itself.

    The plan's sentences must be there already (`expertmine.run.sentences.write_segment`). The corpus of
    an earlier plan is removed after the new plan is written.

    Args:
        again: stages all of whose tasks are to run again.

    Raises:
        UserError: the disk is full or refuses, the corpus changed meanwhile, or another process drives the run.
    """
    own = paths.corpus_folder(run, plan.corpus)
    if not same(corpus.path, own):
        for name in reversed(FILES):  # corpus.json last
            copy(corpus.path / name, own / name)
        copied = Corpus.open(own)
        copied.check()
        if copied.identity != plan.corpus:
            raise UserError(f"{corpus.path} has changed while it was copied; plan the run again")
    lease.require(run)
    for stage in again:
        forget_receipts(run, stage)
    write_json(paths.plan_file(run), plan.to_json())
    for stage in again:  # a worker of the earlier plan may have finished a task just now
        forget_receipts(run, stage)
    for other in children(own.parent):
        if other.name != own.name:
            remove_folder(other)
