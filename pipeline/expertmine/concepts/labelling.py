"""Turns candidates into labelled concepts: bounds, the sample of positives, negatives of every kind.

A candidate comes from any source with all the texts that carry it (its members) and, if the source knows some, its
hard negatives. Members are never negatives; those that are not sampled as positives are `neither`. All samples are
drawn by hash priorities (`expertmine.corpus.draws`). Knows no source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from expertmine.concepts.kinds import Negatives
from expertmine.corpus.drafts import Draft, DraftConcept, Refusal, Refusals, no_ids
from expertmine.corpus.draws import Ids, draw, draw_names, draw_others, hash_priorities
from expertmine.corpus.texts import Texts
from expertmine.errors import UserError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A concept as its source describes it."""

    name: str
    group: str
    description: str
    members: Ids
    """Every text that carries it."""
    hard_negatives: Mapping[Negatives, Callable[[], Ids]] = field(default_factory=dict)
    """Functions that find the negatives that only the source knows (``listed``, ``sisters``, ``homographs``). They are
    called late, since most candidates are out of bounds."""
    sense_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Labelling:
    """How candidates become concepts."""

    negatives: tuple[Negatives, ...] = ("pool",)
    """A concept's negatives are the union of these kinds."""
    negatives_size: int = 1000
    """Size of the pool, and of each sample per concept; does not limit ``listed`` and ``others``."""
    min_positives: int = 1
    """A concept with fewer members is refused."""
    max_positives: int | None = None
    """A concept with more members is refused."""
    cap: int | None = None
    """Maximum number of positives per concept; they are sampled from its members at random."""
    limit: int | None = None
    """Maximum number of concepts; they are sampled at random."""
    seed: int = 0

    def __post_init__(self) -> None:
        most = self.max_positives
        if self.min_positives < 1 or (most is not None and most < self.min_positives):
            raise UserError(f"bounds on positives are {self.min_positives} to {most}: expected 1 <= min <= max")
        for what, value in (("cap on positives", self.cap), ("number of negatives", self.negatives_size)):
            if value is not None and value < 1:
                raise UserError(f"{what} is {value}: expected at least 1")


def label(
    candidates: Iterable[Candidate], texts: Texts, labelling: Labelling, refusals: Refusals, sources: Sequence[str]
) -> Draft:
    """Make a draft of the candidates within the bounds.

    Candidates out of bounds, and concepts without negatives, are added to the refusals.
    """
    passed = [candidate for candidate in candidates if _within_bounds(candidate, labelling, refusals)]
    drawn = set(draw_names((candidate.name for candidate in passed), labelling.limit, f"concepts {labelling.seed}"))
    if not len(texts):
        return Draft(texts, [], sources, refusals=refusals)
    chooser = _Chooser(texts, labelling)
    kept: list[DraftConcept] = []
    for candidate in passed:
        if candidate.name in drawn:
            concept = chooser.concept(candidate)
            if chooser.has_negatives(concept):
                kept.append(concept)
            else:
                refusals.add(Refusal("concept", concept.name, f"no negatives ({', '.join(labelling.negatives)})"))
    return Draft(texts, kept, sources, chooser.pools, refusals)


def _within_bounds(candidate: Candidate, labelling: Labelling, refusals: Refusals) -> bool:
    count, most = len(np.unique(candidate.members)), labelling.max_positives
    if count < labelling.min_positives:
        reason = f"fewer than {labelling.min_positives:,} positives" if labelling.min_positives > 1 else "no positives"
    elif most is not None and count > most:
        reason = f"more than {most:,} positives"
    else:
        return True
    refusals.add(Refusal("concept", candidate.name, reason, f"{count:,}"))
    return False


class _Chooser:
    """Draws positives and negatives; holds the pool and the priorities that all concepts share."""

    def __init__(self, texts: Texts, labelling: Labelling) -> None:
        self.labelling = labelling
        keys = texts.keys
        self.positive_priorities = hash_priorities(keys, f"positives {labelling.seed}")
        self.negative_priorities = hash_priorities(keys, f"negatives {labelling.seed}")
        self.all_ids = np.arange(len(keys), dtype=np.int32)
        self.by_key = np.lexsort((keys[:, 1], keys[:, 0])).astype(np.int32)
        self.pools: list[Ids] = []
        if "others" in labelling.negatives:
            self.pools.append(self.all_ids)
        elif "pool" in labelling.negatives:
            self.pools.append(draw(self.all_ids, labelling.negatives_size, self.negative_priorities))
        self.in_pool = np.zeros(len(keys), np.bool_)
        for pool in self.pools:
            self.in_pool[pool] = True

    def concept(self, candidate: Candidate) -> DraftConcept:
        positives = draw(np.unique(candidate.members), self.labelling.cap, self.positive_priorities)
        parts = [self._negatives(kind, candidate) for kind in self.labelling.negatives]
        return DraftConcept(
            name=candidate.name,
            group=candidate.group,
            description=candidate.description,
            positives=positives,
            negatives=np.concatenate([no_ids(), *parts]),
            pool=0 if self.pools else None,
            neither=np.setdiff1d(candidate.members, positives),
            sense_keys=candidate.sense_keys,
        )

    def has_negatives(self, concept: DraftConcept) -> bool:
        members = np.union1d(concept.positives, concept.neither)
        in_pool = sum(map(len, self.pools)) - int(self.in_pool[members].sum())
        return in_pool > 0 or not np.isin(concept.negatives, members).all()

    def _negatives(self, kind: Negatives, candidate: Candidate) -> Ids:
        """Return a candidate's own negatives of a kind; the corpus writer later drops those that are members."""
        size, seed = self.labelling.negatives_size, self.labelling.seed
        if kind in ("pool", "others"):
            return no_ids()
        if kind == "own":
            return draw_others(self.by_key, candidate.members, size, f"negatives {seed} {candidate.name}")
        found = candidate.hard_negatives.get(kind, no_ids)()
        if kind == "listed":
            return found
        drawn = draw(np.setdiff1d(found, candidate.members), size, self.negative_priorities)
        return np.concatenate([drawn, np.intersect1d(found, candidate.members)])
