"""Turns corpora back into a draft: one, to hold out other sentences, or several, to merge them. Knows no source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from expertmine.concepts.kinds import SameName
from expertmine.corpus.drafts import Draft, DraftConcept, Refusal, Refusals
from expertmine.corpus.draws import Ids
from expertmine.corpus.reader import Corpus
from expertmine.corpus.texts import Texts
from expertmine.errors import UserError

_BATCH = 1 << 16


def merge(corpora: Sequence[Corpus], same_name: SameName = "refuse", min_positives: int = 1) -> Draft:
    """Make a draft of everything in the corpora, with shared sentences and equal pools only once.

    A joined concept has the positives of all its parts, and their negatives with the union of their pools, except
    sentences that some part labels positive or neither. The order of the corpora does not matter.

    Args:
        min_positives: a concept with fewer positives, after joining, is refused.

    Raises:
        UserError: a torn corpus, or concepts of one name when `same_name` is ``refuse``.
    """
    texts, refusals = Texts(), Refusals()
    ids: list[Ids] = []
    for corpus in corpora:
        corpus.check()
        ids.append(_take_texts(corpus, texts))
        refusals.listed += [Refusal(**row) for row in corpus.table("refused").to_pylist()]
        for refused in corpus.metadata["refused"]:
            refusals.counts[refused["kind"], refused["reason"]] += refused["count"]
    id_of_key = {tuple(key): at for at, key in enumerate(texts.keys.tolist())}
    pools: list[Ids] = []
    parts: dict[str, list[DraftConcept]] = defaultdict(list)
    seen_in: dict[str, Corpus] = {}
    for corpus, id_of in zip(corpora, ids, strict=True):
        for concept in _concepts(corpus, id_of, id_of_key, pools):
            if concept.name in seen_in and same_name == "refuse":
                raise UserError(
                    f"concept {concept.name!r} is in {seen_in[concept.name].path} and in {corpus.path}; "
                    "--same-name join merges them into one"
                )
            seen_in[concept.name] = corpus
            parts[concept.name].append(concept)
    unions: dict[tuple[int, ...], int] = {}
    joined = [_join(same, pools, unions) for same in parts.values()]
    kept = [concept for concept in joined if len(concept.positives) >= min_positives]
    for concept in joined:
        if len(concept.positives) < min_positives:
            count = f"{len(concept.positives):,}"
            refusals.add(Refusal("concept", concept.name, f"fewer than {min_positives:,} positives", count))
    sources = dict.fromkeys(sorted(chain.from_iterable(corpus.metadata["sources"] for corpus in corpora)))
    return Draft(texts, kept, list(sources), pools, refusals)


def _take_texts(corpus: Corpus, texts: Texts) -> Ids:
    """Add a corpus's sentences to `texts`; return their ids, (sentences,)."""
    total = corpus.identity.sentences
    return np.fromiter(
        (
            texts.add(text)
            for start in range(0, total, _BATCH)
            for text in corpus.texts(range(start, min(start + _BATCH, total)))
        ),
        np.int32,
        total,
    )


def _concepts(
    corpus: Corpus, id_of: Ids, id_of_key: Mapping[tuple[int, ...], int], pools: list[Ids]
) -> Iterator[DraftConcept]:
    """Yield a corpus's concepts with ids of the merged texts; appends its pools to `pools`."""
    first_pool = len(pools)
    pools.extend(id_of[pool] for pool in corpus.pools)
    for concept in corpus.concepts:
        own = corpus.labels(concept.concept_id)
        left_out = corpus.left_out(concept.concept_id)
        found = np.array([id_of_key.get(tuple(key), -1) for key in left_out.tolist()], np.int32)
        yield DraftConcept(
            name=concept.name,
            group=concept.group,
            description=concept.description,
            positives=id_of[own.positives],
            negatives=id_of[own.negatives],
            pool=None if concept.pool is None else first_pool + concept.pool,
            neither=np.concatenate([id_of[own.neither], found[found >= 0]]),
            neither_elsewhere=left_out[found < 0],
            sense_keys=concept.sense_keys,
        )


def _join(parts: Sequence[DraftConcept], pools: list[Ids], unions: dict[tuple[int, ...], int]) -> DraftConcept:
    """Join concepts of one name; appends a new union of their pools to `pools`."""
    if len(parts) == 1:
        return parts[0]
    own_pools = tuple(sorted({part.pool for part in parts if part.pool is not None}))
    if len(own_pools) > 1 and own_pools not in unions:
        unions[own_pools] = len(pools)
        pools.append(np.unique(np.concatenate([pools[pool] for pool in own_pools])))
    return replace(
        parts[0],
        group=min((part.group for part in parts if part.group), default=""),
        description=min((part.description for part in parts if part.description), default=""),
        positives=np.unique(np.concatenate([part.positives for part in parts])),
        negatives=np.unique(np.concatenate([part.negatives for part in parts])),
        neither=np.unique(np.concatenate([part.neither for part in parts])),
        neither_elsewhere=np.concatenate([part.neither_elsewhere for part in parts]),
        pool=unions[own_pools] if len(own_pools) > 1 else next(iter(own_pools), None),
        sense_keys=tuple(dict.fromkeys(chain.from_iterable(sorted(part.sense_keys for part in parts)))),
    )
