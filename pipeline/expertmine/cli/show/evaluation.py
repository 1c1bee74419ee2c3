"""What the command line prints of evaluations, and where their figures go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_args

from rich.markup import escape

from expertmine.cli.show.console import as_json, out, table
from expertmine.errors import UserError
from expertmine.evaluate.results import Ablation, ConceptEvaluation, Estimate, Interval, Parity, result_path
from expertmine.storage.locations import Location

Result = TypeVar("Result", ConceptEvaluation, Ablation, Parity)


def estimates(asked: Sequence[str] | None) -> tuple[Estimate, ...]:
    """Those that were asked for; both unless any was.

    Raises:
        UserError: a word that is none.
    """
    known: tuple[Estimate, ...] = get_args(Estimate)
    for word in asked or ():
        if word not in known:
            raise UserError(f"--estimate is {word!r}: expected {' or '.join(known)}")
    return tuple(each for each in known if not asked or each in asked)


def draw(run: Location, found: Result, figure: Callable[[Result], Any], asked: Path | None) -> Location:
    """Draw a result, beside it unless another place was asked for; returns where."""
    from expertmine.report.evaluation_figures import save

    path = asked or result_path(run, found.provenance.pooling, type(found)).with_suffix(".svg")
    save(figure(found), path)
    return path


def concept(found: ConceptEvaluation, figure: Location, json_: bool) -> None:
    """Success and perplexity, a row a concept."""
    if json_:
        as_json(asdict(found))
        return
    ladder = [point.k for point in found.curves[0].points]
    for title, name, form in (
        ("share of generations that the classifier assigns to the concept", "share", ".2f"),
        ("share of generations that have one of its words", "lexical", ".2f"),
        (f"perplexity of the generations by {found.provenance.reader}", "perplexity", ".0f"),
        ("distinct pairs of words", "distinct_2", ".2f"),
    ):
        out.print(f"\n[bold]{title}[/bold]")
        made = table("concept", *(f"k = {k}" for k in ladder), "best k")
        for curve in found.curves:
            cells = [_number(getattr(point.success, name), form) for point in curve.points]
            made.add_row(escape(curve.concept), *cells, _number(curve.chosen_k, "d"))
        out.print(made)
    first = found.provenance
    recalls = sorted(curve.classifier.recall for curve in found.curves)
    out.print(
        f"\n{first.samples} generations a cell, strength {first.strength:g}. The classifier (TF-IDF, logistic "
        f"regression) learns from sentences that mining did not see; at "
        f"{found.curves[0].classifier.false_positives:.0%} false positives it finds {recalls[0]:.0%} to "
        f"{recalls[-1]:.0%} of a concept's own, cross-validated.\nBest k: {found.rule}.",
        soft_wrap=True,
    )
    _told(figure)


def ablation(found: Ablation, figure: Location, json_: bool) -> None:
    """Variants with intervals."""
    if json_:
        as_json(asdict(found))
        return
    made = table("units set", "success", "95 %", "with a word", "perplexity", "experts win", "difference", "95 %", "p")
    for each in found.comparisons:
        difference = each.difference
        made.add_row(
            escape(each.variant),
            f"{each.share.mean:.3f}",
            _range(each.share),
            "–" if each.lexical is None else f"{each.lexical.mean:.3f}",
            "–" if each.perplexity_ratio is None else f"× {each.perplexity_ratio:.2f}",
            "" if each.beaten is None else f"{each.beaten:.0%}",
            "" if difference is None else f"{difference.mean:+.3f}",
            "" if difference is None else _range(difference),
            "" if each.p_value is None else f"{each.p_value:.1g}",
        )
    out.print(made)
    concepts = len({cell.concept for cell in found.cells})
    out.print(
        f"\n{concepts} concepts, {found.provenance.samples} generations each; k: {found.k_rule}. Success is the mean "
        "share of generations that the classifier assigns to the concept, with a word the share that have one of its "
        "lemmas, perplexity the median multiple of the unsteered one. Experts win: share of concepts where they "
        "succeed more often (ties as halves). Intervals by resampling concepts, p by flipping signs.",
        soft_wrap=True,
    )
    _told(figure)


def parity(found: Parity, figure: Location, json_: bool) -> None:
    """Contexts by lean, for each estimate."""
    if json_:
        as_json(asdict(found))
        return
    made = table(
        "estimate", "lean", "contexts", "reach parity", "median k", *(f"k = {k}" for k in found.ladder), left=2
    )
    for each in found.summaries:
        made.add_row(
            each.estimate,
            each.lean,
            f"{each.contexts:,}",
            "" if each.lean == "none" else f"{each.reached:,} ({each.reached / each.contexts:.0%})",
            _number(each.median_parity_k, ".1f"),
            *(f"{value:+.3f}" for value in each.mean_difference),
        )
    out.print("[bold]mean of p(she, her) - p(he, his), by which is likelier unsteered[/bold]")
    out.print(made)
    of_texts = [each for each in found.summaries if each.estimate == "sampled" and each.lean != "none"]
    if of_texts:
        out.print("\n[bold]fluency of the generations[/bold]")
        made = table("lean", "measure", "at parity", *(f"k = {k}" for k in found.ladder), left=2)
        for each in of_texts:
            for name, values, form in (
                ("perplexity", each.mean_perplexity, ".1f"),
                ("self-BLEU-3", each.self_bleu_3, ".3f"),
                ("self-BLEU-4", each.self_bleu_4, ".3f"),
            ):
                at_parity = _number(each.parity_perplexity, form) if name == "perplexity" else ""
                made.add_row(each.lean, name, at_parity, *(_number(value, form) for value in values))
        out.print(made)
    out.print(
        f"\nExperts of {escape(found.man)} are set where a context leans to she, of {escape(found.woman)} where it "
        f"leans to he; sampled: {found.provenance.samples} generations of {found.provenance.max_new_tokens} tokens a "
        "context and k. The parity point is the first change of sign over k, interpolated. Contexts without a lean are "
        "not steered.",
        soft_wrap=True,
    )
    _told(figure)


def _told(figure: Location) -> None:
    out.print(f"figure: {figure}", markup=False, soft_wrap=True)


def _range(found: Interval) -> str:
    return f"{found.low:.3f} to {found.high:.3f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
