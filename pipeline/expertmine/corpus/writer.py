"""Writes a draft as a corpus folder: resolves its labels, orders and holds out sentences, writes the tables.

Knows neither the sources of the draft nor the runs that use the corpus.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expertmine.corpus.drafts import Draft, DraftConcept, Keys, Refusals, brief, name_fault, no_keys, storable
from expertmine.corpus.draws import Ids, hash_priorities
from expertmine.corpus.held_out import choose_held_out
from expertmine.corpus.reader import FORMAT, fingerprint, membership
from expertmine.corpus.texts import key_text
from expertmine.errors import UserError
from expertmine.specs.identity import CorpusIdentity
from expertmine.specs.plan import PLAN_FILE
from expertmine.storage.files import exists, remove, write_json, writing
from expertmine.storage.locations import Location, absolute, is_remote
from expertmine.storage.tables import write_table

_NEW = ".new-"
_NO_USER = np.iinfo(np.int32).max


def write_corpus(draft: Draft, out: Location, held_out_percent: float = 0.0, seed: int = 0) -> CorpusIdentity:
    """Write a corpus folder; ``corpus.json`` comes last, and without it the folder is not a corpus.

    A text labelled both positive and negative is positive; one labelled both negative and neither is neither; both are
    counted as conflicts. Repeats count once. Texts that no concept uses are left out.

    Args:
        held_out_percent: share, 0 to 90, of each concept's positives and of every set of negatives that mining does
            not see (see `expertmine.corpus.held_out`).
        seed: seed of the held-out split.

    Raises:
        UserError: an empty, unprintable, path-like or repeated name, a concept without positive or negative sentences
            to mine, no concept at all, or a folder that belongs to a run.
    """
    check_output_folder(out)
    if not 0 <= held_out_percent <= 90:
        raise UserError(f"held-out share is {held_out_percent} %: expected 0 to 90")
    counts: Counter[str] = Counter(repeats_dropped=draft.texts.repeats, conflicts_resolved=0)
    keys = draft.texts.keys
    concepts, pools = _settle(draft, keys, counts)
    order = _row_order(concepts, pools, keys)
    row_of = np.full(len(draft.texts), -1, np.int32)
    row_of[order] = np.arange(len(order), dtype=np.int32)
    concepts = [_at_rows(concept, row_of) for concept in concepts]
    pools = [np.sort(row_of[pool]) for pool in pools]
    held_out = choose_held_out(
        [rows for concept in concepts for rows in (concept.positives, concept.negatives)],
        pools,
        hash_priorities(keys[order], f"held out {seed}"),
        held_out_percent,
    )
    _require_both_kinds(concepts, pools, held_out)
    tables = {
        "sentences": _sentences(draft, order, keys, held_out),
        "concepts": _concepts(concepts),
        "labels": _labels(concepts),
        "pools": _pools(pools),
        "left_out": _left_out(concepts),
        "refused": _refused(draft.refusals),
    }
    identity = CorpusIdentity(fingerprint(tables), len(order), len(concepts))
    metadata = {
        "format": FORMAT,
        "fingerprint": identity.fingerprint,
        "sentences": identity.sentences,
        "concepts": identity.concepts,
        "labels": tables["labels"].num_rows,
        "pools": [len(pool) for pool in pools],
        "held_out_sentences": int(held_out.sum()),
        "held_out_percent": held_out_percent,
        "sources": [storable(source) for source in draft.sources],
        **counts,
        "texts_not_used": len(draft.texts) - len(order),
        "refused": [
            {"kind": kind, "reason": reason, "count": count}
            for (kind, reason), count in sorted(draft.refusals.counts.items())
        ],
    }
    _write_files(out, tables, metadata)
    return identity


def check_output_folder(out: Location) -> None:
    """Refuse a location where no corpus may be written.

    Raises:
        UserError: it is a file, or belongs to a run.
    """
    above = absolute(out).parent
    for run in (out, above, above.parent):  # RUN/corpus/<fingerprint>
        if exists(run / PLAN_FILE):
            raise UserError(f"{out} belongs to the run {run}, which would be damaged; write the corpus elsewhere")
    if is_remote(out):
        return
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise UserError(f"{out} exists and is not a folder; choose a folder for the corpus")


def _write_files(out: Location, tables: dict[str, pa.Table], metadata: dict[str, Any]) -> None:
    """Write all files to a temporary folder, then move them: on a full disk, the old corpus stays.

    An object store is never full and has no rename; there the files are written one by one, ``corpus.json`` last.
    """
    if is_remote(out):
        remove(out / "corpus.json")
        for name, table in tables.items():
            write_table(out / f"{name}.parquet", table)
        write_json(out / "corpus.json", metadata)
        return
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for left_by_a_killed_process in out.glob(f"{_NEW}*"):
            shutil.rmtree(left_by_a_killed_process)
        with TemporaryDirectory(dir=out, prefix=_NEW) as new:
            for name, table in tables.items():
                write_table(Path(new) / f"{name}.parquet", table)
            write_json(Path(new) / "corpus.json", metadata)
            (out / "corpus.json").unlink(missing_ok=True)
            for file in (*(f"{name}.parquet" for name in tables), "corpus.json"):
                (Path(new) / file).replace(out / file)


def _settle(draft: Draft, keys: Keys, counts: Counter[str]) -> tuple[list[DraftConcept], list[Ids]]:
    """Return the concepts, sorted by name and with disjoint label sets, and the pools that they use."""
    if not draft.concepts:
        raise UserError(f"no concept to write: the source gave none{_why(draft.refusals)}")
    concepts = sorted(draft.concepts, key=lambda concept: concept.name)
    for concept in concepts:
        if fault := name_fault(concept.name):
            raise UserError(f"concept name {brief(concept.name)} {fault}")
    for first, second in pairwise(concepts):
        if first.name == second.name:
            raise UserError(f"concept {first.name!r} appears twice; rename one of them")
    pools, new_index = _settle_pools(draft, keys, {concept.pool for concept in concepts if concept.pool is not None})
    inside = membership(pools, len(keys))
    return [_settle_concept(concept, new_index, inside, keys, counts) for concept in concepts], pools


def _settle_pools(draft: Draft, keys: Keys, used: set[int]) -> tuple[list[Ids], dict[int, int]]:
    """Return the distinct pools in use, ordered by content, and the new index of each old one."""
    digests: dict[int, bytes] = {}
    for pool in used:
        own = keys[np.unique(draft.pools[pool])]
        digests[pool] = own[np.lexsort((own[:, 1], own[:, 0]))].astype(">u8").tobytes()
    index_of_digest = {digest: at for at, digest in enumerate(sorted(set(digests.values())))}
    new_index = {pool: index_of_digest[digest] for pool, digest in digests.items()}
    old_index = {new: old for old, new in new_index.items()}
    return [np.unique(draft.pools[old_index[new]]) for new in range(len(index_of_digest))], new_index


def _settle_concept(
    concept: DraftConcept, new_index: dict[int, int], inside: NDArray[np.bool_], keys: Keys, counts: Counter[str]
) -> DraftConcept:
    """Resolve conflicts: positive wins over neither, neither over negative; neither outside the pool is kept by hash.

    Args:
        inside: (pools, texts) whether a pool holds a text.
        keys: (texts, 2) content hashes.
    """
    positives, listed, neither = (np.unique(ids) for ids in (concept.positives, concept.negatives, concept.neither))
    neither = neither[~np.isin(neither, positives)]
    conflicts = np.isin(listed, positives) | np.isin(listed, neither)
    counts["conflicts_resolved"] += int(conflicts.sum())
    negatives = listed[~conflicts]
    pool = None if concept.pool is None else new_index[concept.pool]
    in_pool = np.zeros(inside.shape[1], np.bool_) if pool is None else inside[pool]
    elsewhere = np.concatenate([keys[neither[~in_pool[neither]]], concept.neither_elsewhere])
    return replace(
        concept,
        positives=positives,
        negatives=negatives[~in_pool[negatives]],  # the pool's are negatives anyway
        pool=pool,
        neither=neither[in_pool[neither]],
        neither_elsewhere=np.unique(elsewhere, axis=0),
    )


def _why(refusals: Refusals) -> str:
    most = (f"{count:,} × {kind}: {reason}" for (kind, reason), count in refusals.counts.most_common(5))
    return f" (refused: {'; '.join(most)})" if refusals.counts else ""


def _row_order(concepts: Sequence[DraftConcept], pools: Sequence[Ids], keys: NDArray[np.uint64]) -> Ids:
    """Return the ids of used texts: shared negatives, then what each concept adds; each group sorted by key."""
    texts = len(keys)
    first_user = np.full(texts, _NO_USER, np.int32)
    split = np.zeros(texts, np.int8)
    for at, concept in enumerate(concepts):
        for label, ids in enumerate((concept.positives, concept.negatives)):
            new = ids[first_user[ids] == _NO_USER]
            first_user[new] = at
            split[new] = label
    used = first_user < _NO_USER
    shared = np.bincount(np.concatenate([concept.negatives for concept in concepts]), minlength=texts) > 1
    for pool in pools:
        used[pool] = True
        if len(pool) < texts:  # a pool of all texts forms no group of its own
            shared[pool] = True
    first_user[shared] = 0
    split[shared] = 0
    ids = np.flatnonzero(used).astype(np.int32)
    columns = (keys[ids, 1], keys[ids, 0], split[ids], first_user[ids], ~shared[ids])
    return ids[np.lexsort(columns)]


def _at_rows(concept: DraftConcept, row_of: Ids) -> DraftConcept:
    """Replace a concept's text ids by rows of the corpus, ascending."""
    positives, negatives, neither = (
        np.sort(row_of[ids]) for ids in (concept.positives, concept.negatives, concept.neither)
    )
    return replace(concept, positives=positives, negatives=negatives, neither=neither)


def _require_both_kinds(concepts: Sequence[DraftConcept], pools: Sequence[Ids], held_out: NDArray[np.bool_]) -> None:
    """Raise a UserError unless every concept has a positive and a negative that is not held out."""
    mined_in_pool = membership(pools, len(held_out)) & ~held_out
    pool_sizes = mined_in_pool.sum(axis=1)
    for concept in concepts:
        negatives = int((~held_out[concept.negatives]).sum())
        if concept.pool is not None:
            own = (concept.positives, concept.negatives, concept.neither)
            negatives += int(pool_sizes[concept.pool] - sum(mined_in_pool[concept.pool, rows].sum() for rows in own))
        for kind, count in (("positive", (~held_out[concept.positives]).sum()), ("negative", negatives)):
            if not count:
                raise UserError(
                    f"concept {concept.name!r} has no {kind} sentence to mine; "
                    "average precision needs at least one positive and one negative"
                )


def _sentences(draft: Draft, order: Ids, keys: NDArray[np.uint64], held_out: NDArray[np.bool_]) -> pa.Table:
    return pa.table(
        {
            "sentence_id": pa.array(np.arange(len(order), dtype=np.int32)),
            "text": draft.texts.take(order),
            "key": pa.array(key_text(keys[order]), pa.string()),
            "held_out": pa.array(held_out),
        }
    )


def _concepts(concepts: Sequence[DraftConcept]) -> pa.Table:
    return pa.table(
        {
            "concept_id": pa.array(np.arange(len(concepts), dtype=np.int32)),
            "name": [concept.name for concept in concepts],
            "group": [concept.group for concept in concepts],
            "description": [concept.description for concept in concepts],
            "sense_keys": pa.array([concept.sense_keys for concept in concepts], pa.list_(pa.string())),
            "pool": pa.array([concept.pool for concept in concepts], pa.int32()),
        }
    )


def _labels(concepts: Sequence[DraftConcept]) -> pa.Table:
    sizes: list[int] = []
    sentence_ids: list[Ids] = []
    labels: list[NDArray[np.int8]] = []
    for concept in concepts:
        splits = (concept.positives, concept.negatives, concept.neither)
        rows = np.concatenate(splits)
        by_row = np.argsort(rows)
        sizes.append(len(rows))
        sentence_ids.append(rows[by_row])
        labels.append(np.repeat(np.array([1, 0, -1], np.int8), [len(split) for split in splits])[by_row])
    return pa.table(
        {
            "concept_id": np.repeat(np.arange(len(concepts), dtype=np.int32), sizes),
            "sentence_id": np.concatenate(sentence_ids),
            "label": np.concatenate(labels),
        }
    )


def _pools(pools: Sequence[Ids]) -> pa.Table:
    return pa.table(
        {
            "pool_id": np.repeat(np.arange(len(pools), dtype=np.int32), [len(pool) for pool in pools]),
            "sentence_id": np.concatenate([np.empty(0, np.int32), *pools]),
        }
    )


def _left_out(concepts: Sequence[DraftConcept]) -> pa.Table:
    sizes = [len(concept.neither_elsewhere) for concept in concepts]
    keys = np.concatenate([no_keys(), *(concept.neither_elsewhere for concept in concepts)]).astype(">u8").tobytes()
    return pa.table(
        {
            "concept_id": np.repeat(np.arange(len(concepts), dtype=np.int32), sizes),
            "key": pa.Array.from_buffers(pa.binary(16), len(keys) // 16, [None, pa.py_buffer(keys)]),
        }
    )


def _refused(refusals: Refusals) -> pa.Table:
    names = ("kind", "name", "reason", "detail")
    listed = refusals.listed
    return pa.table({name: pa.array([storable(getattr(one, name)) for one in listed], pa.string()) for name in names})
