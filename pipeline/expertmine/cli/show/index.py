"""Prints look-ups, comparisons, exports and packs of an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from rich.markup import escape

from expertmine.cli.show.console import as_json, number, out, table
from expertmine.telemetry.formats import p_value, size

if TYPE_CHECKING:
    from expertmine.index.experts import Experts
    from expertmine.index.lookup import AtHookpoints, Comparison, Neighbour, Service, SharedUnit, UnitAddress
    from expertmine.index.pack import Packed


def unit(index: Experts, address: UnitAddress, services: Sequence[Service], count: int, json_: bool) -> None:
    """Print the concepts that a unit is an expert of."""
    if json_:
        as_json({**asdict(address), "concepts": [asdict(service) for service in services]})
        return
    out.print(
        f"[bold]unit {address.unit}[/bold]  {escape(address.hookpoint)}, channel {address.channel}", soft_wrap=True
    )
    if services:
        made = table("concept", "rank", "AP", "p", "held out", "AUROC")
        for service in services[:count]:
            made.add_row(
                escape(service.concept),
                str(service.rank),
                f"{service.ap:.3f}",
                p_value(service.p_value, index.metadata["scoring"]["permutations"]),
                number(service.held_out_ap, ".3f"),
                f"{service.auroc:.3f}",
            )
        out.print(made)
    _more(len(services) - count)
    out.print(f"an expert of {len(services):,} of {len(index):,} concepts", markup=False)


def most_shared(units: Sequence[SharedUnit], json_: bool) -> None:
    """Print the units that are experts of the most concepts."""
    if json_:
        as_json([asdict(each) for each in units])
        return
    if not units:
        out.print("no unit is an expert of more than one concept")
        return
    made = table("hookpoint", "channel", "unit", "concepts", "best rank", "AP", "best for")
    for each in units:
        made.add_row(
            escape(each.hookpoint),
            str(each.channel),
            str(each.unit),
            f"{each.concepts:,}",
            str(each.best_rank),
            f"{each.best_ap:.3f}",
            escape(each.best_concept),
        )
    made.columns[-1].justify = "left"
    out.print(made)


def at_hookpoints(found: AtHookpoints, count: int, json_: bool) -> None:
    """Print the experts at hookpoints."""
    if json_:
        as_json({**asdict(found), "enrichment": found.enrichment})
        return
    names = [*found.hookpoints[:3], *(["…"] if len(found.hookpoints) > 3 else [])]
    out.print(f"[bold]{escape(', '.join(names))}[/bold]", soft_wrap=True)
    if found.concepts:
        made = table("concept", "experts here", "share", "best rank", "unit", "AP")
        for presence in found.concepts[:count]:
            made.add_row(
                escape(presence.concept),
                f"{presence.experts:,}",
                f"{presence.share:.0%}",
                str(presence.best_rank),
                str(presence.best_unit),
                f"{presence.best_ap:.3f}",
            )
        out.print(made)
    _more(len(found.concepts) - count)
    out.print(
        f"{found.expert_units:,} of {found.units:,} units here are experts of {len(found.concepts):,} concepts; "
        f"{found.pairs:,} of {found.all_pairs:,} experts of all concepts are here, {found.enrichment:.2f} times the "
        "model's average density",
        soft_wrap=True,
        markup=False,
    )


def comparison(found: Comparison, count: int, json_: bool) -> None:
    """Print the comparison of two concepts."""
    if json_:
        as_json(asdict(found))
        return
    if found.shared:
        made = table(
            "hookpoint", "channel", "unit", f"rank: {escape(found.concept)}", "AP", f"rank: {escape(found.other)}", "AP"
        )
        for each in found.shared[:count]:
            made.add_row(
                escape(each.hookpoint),
                str(each.channel),
                str(each.unit),
                str(each.rank),
                f"{each.ap:.3f}",
                str(each.other_rank),
                f"{each.other_ap:.3f}",
            )
        out.print(made)
    _more(len(found.shared) - count)
    correlation = number(found.rank_correlation, ".2f")
    out.print(
        f"{found.concept} and {found.other} share {len(found.shared):,} of their {found.k:,} best experts (Jaccard "
        f"{found.jaccard:.3f}; {found.expected:.1f} would be shared at random); rank correlation of shared experts "
        f"{correlation}" + (" (too few)" if correlation == "–" else ""),
        soft_wrap=True,
        markup=False,
    )


def nearest(index: Experts, concept: str, k: int, found: Sequence[Neighbour], json_: bool) -> None:
    """Print the concepts that share the most experts with one."""
    if json_:
        as_json({"concept": concept, "k": k, "nearest": [asdict(each) for each in found]})
        return
    if not found:
        out.print(f"no concept shares any of the {k:,} best experts of {concept}", markup=False, soft_wrap=True)
        return
    made = table("concept", "shared", "Jaccard", "description")
    for each in found:
        description = index.concept_metadata(each.concept)["description"]
        made.add_row(
            escape(each.concept),
            f"{each.shared:,}",
            f"{each.jaccard:.3f}",
            escape(shorten(description, 70, placeholder="…")),
        )
    made.columns[-1].justify = "left"
    out.print(made)
    out.print(
        f"of {k:,} experts each; at random, two concepts would share {k * k / index.metadata['units']:.1f}",
        markup=False,
    )


def exported(folder: Path, concepts: Sequence[Path], json_: bool) -> None:
    if json_:
        as_json({"folder": folder, "expertise": concepts})
        return
    out.print(f"{folder}: expertise of {len(concepts):,} concepts, such as", markup=False, soft_wrap=True)
    out.print(f"  {concepts[0]}", markup=False, soft_wrap=True)


def exported_table(path: Path, rows: int, json_: bool) -> None:
    if json_:
        as_json({"file": path, "rows": rows, "bytes": path.stat().st_size})
        return
    out.print(f"{path}: {rows:,} rows, {size(path.stat().st_size)}", markup=False, soft_wrap=True)


def packed(found: Packed, address: str | None, json_: bool) -> None:
    if json_:
        as_json({**asdict(found), "published": address})
        return
    lines = [
        f"{found.folder}: {found.concepts:,} concepts × {found.top_k:,} experts, {size(found.bytes)}; its card is "
        f"{found.folder / 'README.md'}"
    ]
    if found.steered:
        lines.append(f"it has a chosen k for {found.steered:,} concepts")
    if found.left_out:
        lines.append(
            f"but not for {', '.join(found.left_out[:5])}{', …' if len(found.left_out) > 5 else ''}: the evaluation "
            f"chose more than {found.top_k}"
        )
    if found.local_model is not None:
        lines.append(f"its model is named by a local folder, {found.local_model}; give its hub id with --base-model")
    if address is not None:
        lines.append(f"published: {address}")
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _more(count: int) -> None:
    if count > 0:
        out.print(f"… and {count:,} more; -n lists them")
