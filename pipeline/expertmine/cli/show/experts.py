"""Prints the experts of an index and the distribution of average precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from expertmine.cli.show.console import as_json, number, out, table
from expertmine.run.paths import plan_file
from expertmine.specs.settings import ASSESSED
from expertmine.storage.files import exists, read_json
from expertmine.storage.locations import Location
from expertmine.storage.untrusted import visible
from expertmine.telemetry.formats import interval, p_value
from expertmine.telemetry.progress import console as stderr

if TYPE_CHECKING:
    from expertmine.index.distribution import Group
    from expertmine.index.experts import Experts

BARS = " ▁▂▃▄▅▆▇█"


def warn_if_stale(run: Location, index: Experts) -> None:
    """Warn if an index belongs to an earlier plan of the run."""
    plan = plan_file(run)
    if not exists(plan):
        return
    found = read_json(plan, "a plan")
    if not isinstance(found, dict) or found.get("fingerprint") != index.metadata["plan"]:
        stderr.print(
            f"{run} was planned again after this index was made; run `expertmine mine` to update it", markup=False
        )


def one_concept(index: Experts, concept: str, k: int, json_: bool) -> None:
    """Print the best units of a concept, and what chance would give."""
    found = index[concept]
    chosen, metadata = found.top(k), index.concept_metadata(concept)
    if json_:
        as_json({"concept": metadata, "experts": [asdict(expert) for expert in chosen]})
        return
    out.print(f"[bold]{escape(found.concept)}[/bold]  {escape(visible(found.description))}", soft_wrap=True)
    made = table(
        "rank", "unit", "hookpoint", "channel", "AP", "p", "held out", "95 %", "AUROC", "mean on", "off", left=0
    )
    scoring = index.metadata["scoring"]
    for expert in chosen:
        made.add_row(
            str(expert.rank),
            str(expert.unit),
            escape(expert.hookpoint),
            str(expert.channel),
            f"{expert.ap:.3f}",
            p_value(expert.p_value, scoring["permutations"]),
            number(expert.held_out_ap, ".3f"),
            interval(expert.held_out_low, expert.held_out_high),
            f"{expert.auroc:.3f}",
            f"{expert.on_mean:.3f}",
            f"{expert.off_mean:.3f}",
        )
    out.print(made)
    for line in _notes(metadata, scoring):
        out.print(visible(line), soft_wrap=True, markup=False)


def _notes(metadata: dict[str, Any], scoring: dict[str, Any]) -> list[str]:
    """Explanations of the table's figures."""
    chance, found = metadata["chance"], []
    if chance["threshold"] is not None:
        found.append(
            f"{chance['units_above']:,} units are above {chance['threshold']:.3f}, which the best of all units exceeds "
            f"with a probability of {scoring['alpha']:.0%} when labels are shuffled ({scoring['permutations']} times, "
            f"labels of {chance['labels_of']}); the mean AP of a single unit is then {chance['expected_ap']:.3f}"
        )
    for k, share in metadata["stability"].items():
        found.append(
            f"of the {k} best, {share:.0%} stay among the {k} best when sentences are resampled "
            f"({scoring['resamples']} times, among the {ASSESSED} best)"
        )
    return found


def every_concept(index: Experts, json_: bool) -> None:
    """Print the best unit of each concept, and what chance would give."""
    best = {name: index[name].top(1)[0] for name in index}
    metadata = {name: index.concept_metadata(name) for name in index}
    if json_:
        as_json([{**metadata[name], "best": asdict(best[name])} for name in index])
        return
    ks = list(next(iter(metadata.values()))["stability"])
    made = table(
        "concept", "positives", "best AP", "p", "threshold", "held out", "95 %", "units above",
        *(f"of {k} stay" for k in ks),
    )  # fmt: skip
    for name in sorted(index, key=lambda name: -best[name].ap):
        expert, chance = best[name], metadata[name]["chance"]
        made.add_row(
            escape(name),
            f"{metadata[name]['positives']:,}",
            f"{expert.ap:.3f}",
            p_value(expert.p_value, index.metadata["scoring"]["permutations"]),
            "–" if chance["threshold"] is None else f"{chance['threshold']:.3f}",
            number(expert.held_out_ap, ".3f"),
            interval(expert.held_out_low, expert.held_out_high),
            "–" if chance["units_above"] is None else f"{chance['units_above']:,}",
            *(f"{metadata[name]['stability'][k]:.0%}" for k in ks),
        )
    out.print(made)


def distribution(groups: Sequence[Group], concept: str | None, by: str, json_: bool) -> None:
    """Print the distribution of average precision."""
    if json_:
        as_json({"concept": concept, "by": by, "groups": [asdict(group) for group in groups]})
        return
    edges = list(groups[0].at_least)
    made = table(
        by, "units" if concept else "pairs", "mean AP", "highest", "above chance", *(f"≥ {e}" for e in edges), "0 … 1"
    )
    for group in groups:
        made.add_row(
            escape(visible(group.name)),
            f"{group.pairs:,}",
            f"{group.mean_ap:.3f}",
            f"{group.max_ap:.3f}",
            "–" if group.above_chance is None else f"{group.above_chance:,}",
            *(f"{group.at_least[edge]:,}" for edge in edges),
            bars(group.bins),
        )
    out.print(made)
    out.print("0 … 1: counts by average precision, in twentieths; heights are logarithmic", markup=False)


def bars(counts: Sequence[int]) -> str:
    """Counts as a row of bars with logarithmic heights; every count above 0 is visible."""
    highest = math.log1p(max(counts))
    return "".join(BARS[math.ceil(math.log1p(count) / highest * (len(BARS) - 1)) if count else 0] for count in counts)
