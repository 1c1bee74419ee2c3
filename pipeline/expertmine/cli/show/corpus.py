"""Prints a corpus and its concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from textwrap import shorten
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from expertmine.cli.show.console import as_json, out, table
from expertmine.storage.locations import Location
from expertmine.storage.untrusted import visible

if TYPE_CHECKING:
    from expertmine.concepts.overlap import Similar
    from expertmine.corpus.drafts import Draft
    from expertmine.corpus.reader import Corpus
    from expertmine.specs.identity import CorpusIdentity

LARGEST = 40
"""Concepts shown by default."""
SIMILAR = 10
"""Pairs of similar concepts shown."""


def corpus_written(identity: CorpusIdentity, draft: Draft, folder: Location) -> None:
    out.print(
        f"{folder}: {identity.concepts:,} concepts, {identity.sentences:,} unique sentences, "
        f"fingerprint {identity.fingerprint[:12]}",
        soft_wrap=True,
        markup=False,
    )
    refusals = draft.refusals.counts.most_common(6)
    for (kind, reason), count in refusals:
        out.print(f"  {count:,} × {kind}: {reason}", soft_wrap=True, markup=False)
    if refusals:
        out.print(f"  `expertmine concepts show {folder} --refused` lists them", soft_wrap=True, markup=False)


def corpus(opened: Corpus, all_: bool, json_: bool) -> None:
    import numpy as np

    from expertmine.concepts.overlap import Overlap, lengths

    held = opened.held_out
    (positives, negatives), (held_out, _) = opened.counts(np.ones_like(held)), opened.counts(held)
    rows = [
        {
            "concept": concept_.name,
            "group": concept_.group,
            "description": concept_.description,
            "positives": int(positives[concept_.concept_id]),
            "negatives": int(negatives[concept_.concept_id]),
            "held_out_positives": int(held_out[concept_.concept_id]),
        }
        for concept_ in opened.concepts
    ]
    overlap = Overlap(opened)
    similar = overlap.most_similar(SIMILAR)
    words = dict(zip(("shortest", "median", "p90", "longest"), lengths(opened), strict=True))
    served = overlap.served
    metadata = opened.metadata
    if json_:
        as_json(
            {
                **metadata,
                "words": words,
                "positives_of_several_concepts": int((served > 1).sum()),
                "positives_of_none": int((served == 0).sum()),
                "most_similar": [asdict(pair) for pair in similar],
                "concepts": rows,
            }
        )
        return
    rows.sort(key=lambda row: -int(str(row["positives"])))
    shown = rows if all_ else rows[:LARGEST]
    longest = max(len(str(row["concept"])) for row in shown)
    width = out.width - longest - len("  positives  negatives  held out  ")
    made = table("concept", "positives", "negatives", "held out", *(["description"] if width > 20 else []))
    for row in shown:
        counts = (f"{row[name]:,}" for name in ("positives", "negatives", "held_out_positives"))
        gloss = (
            [escape(shorten(visible(str(row["description"])), min(width, 70), placeholder="…"))] if width > 20 else []
        )
        made.add_row(escape(str(row["concept"])), *counts, *gloss)
    if width > 20:
        made.columns[-1].justify = "left"
    out.print(made, soft_wrap=width < 0)
    if len(rows) > LARGEST and not all_:
        out.print(f"… and {len(rows) - LARGEST:,} smaller concepts; --all lists them")
    if similar:
        out.print("\n[bold]most similar[/bold], by shared positives")
        out.print(_similar_table(similar, with_first=True))
    out.print(
        f"\n{metadata['concepts']:,} concepts, {metadata['sentences']:,} unique sentences "
        f"({metadata['held_out_sentences']:,} held out), {metadata['labels']:,} labels"
        + "".join(f", a pool of {size_:,}" for size_ in metadata["pools"])
        + f"\nwords per sentence: {words['shortest']:,} to {words['longest']:,}, median {words['median']:,}, "
        f"90 % at most {words['p90']:,}"
        f"\npositives of several concepts: {(served > 1).sum():,} sentences; of none: {(served == 0).sum():,}"
        f"\n{metadata['repeats_dropped']:,} repeated texts dropped, "
        f"{metadata['conflicts_resolved']:,} conflicts resolved, "
        f"{metadata['texts_not_used']:,} source texts not used"
        f"\nfrom {', '.join(metadata['sources'])}; fingerprint {metadata['fingerprint'][:12]}",
        soft_wrap=True,
        markup=False,
    )
    for one in metadata["refused"]:
        out.print(f"refused: {one['count']:,} × {one['kind']}: {one['reason']}", markup=False, soft_wrap=True)
    if metadata["refused"]:
        out.print("--refused lists them")


def _similar_table(similar: Sequence[Similar], with_first: bool) -> Table:
    made = table(*(["concept"] if with_first else []), "concept", "shared", "Jaccard", left=1 + with_first)
    for pair in similar:
        first = [escape(pair.concept)] if with_first else []
        made.add_row(*first, escape(pair.other), f"{pair.shared:,}", f"{pair.jaccard:.2f}")
    return made


def refused(opened: Corpus, json_: bool) -> None:
    """List the refused input of a corpus: the first of each kind and reason."""
    rows = opened.table("refused").to_pylist()
    counted = sum(one["count"] for one in opened.metadata["refused"])
    if json_:
        as_json({"counts": opened.metadata["refused"], "listed": rows})
        return
    for row in rows:  # lines, not a table: locations are long and must not be truncated
        words = (row["kind"], row["name"], row["reason"], row["detail"])
        print("\t".join(visible(word) for word in words if word))
    out.print(f"{counted:,} refused" + (f", {len(rows):,} listed" if counted > len(rows) else ""))


def concept(opened: Corpus, name: str, json_: bool) -> None:
    from expertmine.concepts.overlap import Overlap, lengths

    found = opened.concept(name)
    labelled = opened.rows(found.concept_id)
    similar = Overlap(opened).nearest(found.concept_id, SIMILAR)
    if json_:
        as_json(
            {
                **asdict(found),
                "positives": labelled.positives.tolist(),
                "negatives": labelled.negatives.tolist(),
                "most_similar": [asdict(pair) for pair in similar],
            }
        )
        return
    out.print(f"[bold]{escape(found.name)}[/bold]  {escape(visible(found.description))}", soft_wrap=True)
    if found.sense_keys:
        out.print(f"sense keys {visible(', '.join(found.sense_keys))}", markup=False, soft_wrap=True)
    for kind, rows in (("positive", labelled.positives), ("negative", labelled.negatives)):
        held_out = int(opened.held_out[rows].sum())
        shortest, median, _, longest = lengths(opened, rows)
        out.print(
            f"\n{len(rows):,} {kind} ({held_out:,} held out) of {shortest} to {longest} words, median {median}, such as"
        )
        for row in rows[:: max(1, len(rows) // 5)][:5]:
            (text,) = opened.texts(range(row, row + 1))
            out.print(f"  {escape(visible(text))}", soft_wrap=True)
    if similar:
        out.print("\nmost similar, by shared positives")
        out.print(_similar_table(similar, with_first=False))
