"""Prints the results of evaluations, and saves their figures."""

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


def estimates(requested: Sequence[str] | None) -> tuple[Estimate, ...]:
    """The requested estimates; both by default.

    Raises:
        UserError: an unknown estimate.
    """
    known: tuple[Estimate, ...] = get_args(Estimate)
    for word in requested or ():
        if word not in known:
            raise UserError(f"--estimate is {word!r}: expected {' or '.join(known)}")
    return tuple(each for each in known if not requested or each in requested)


def draw(run: Location, found: Result, figure: Callable[[Result], Any], out_file: Path | None) -> Location:
    """Draw a result to a file, by default next to the result; returns its path."""
    from expertmine.report.evaluation_figures import save

    path = out_file or result_path(run, found.provenance.pooling, type(found)).with_suffix(".svg")
    save(figure(found), path)
    return path


def concept(found: ConceptEvaluation, figure: Location, json_: bool) -> None:
    """Print success and perplexity, one row per concept."""
    if json_:
        as_json(asdict(found))
        return
    ladder = [point.k for point in found.curves[0].points]
    for title, name, form in (
        ("share of generations that the classifier assigns to the concept", "share", ".2f"),
        ("share of generations with one of its words", "lexical", ".2f"),
        (f"perplexity of the generations, measured with {found.provenance.reader}", "perplexity", ".0f"),
        ("share of distinct word pairs", "distinct_2", ".2f"),
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
        f"\n{first.samples} generations per concept and k, strength {first.strength:g}. The classifier (TF-IDF, "
        f"logistic regression) is trained on sentences that mining did not see; at "
        f"{found.curves[0].classifier.false_positives:.0%} false positives it finds {recalls[0]:.0%} to "
        f"{recalls[-1]:.0%} of a concept's positives (cross-validated).\nBest k: {found.rule}.",
        soft_wrap=True,
    )
    _print_path(figure)


def ablation(found: Ablation, figure: Location, json_: bool) -> None:
    """Print variants with intervals."""
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
        f"\n{concepts} concepts, {found.provenance.samples} generations each; k: {found.k_rule}. Success: mean share "
        "of generations that the classifier assigns to the concept. With a word: share with one of its lemmas. "
        "Perplexity: median multiple of the unsteered perplexity. Experts win: share of concepts where experts succeed "
        "more often (ties count half). Intervals are from resampled concepts, p from sign flips.",
        soft_wrap=True,
    )
    _print_path(figure)


def parity(found: Parity, figure: Location, json_: bool) -> None:
    """Print contexts by lean, for each estimate."""
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
    out.print("[bold]mean of p(she, her) - p(he, his), by unsteered lean[/bold]")
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
        f"\nExperts of {escape(found.man)} are set if a context leans to she, of {escape(found.woman)} if it leans to "
        f"he; sampled: {found.provenance.samples} generations of {found.provenance.max_new_tokens} tokens per context "
        "and k. The parity point is the k of the first change of sign, interpolated. Contexts without a lean are not "
        "steered.",
        soft_wrap=True,
    )
    _print_path(figure)


def _print_path(figure: Location) -> None:
    out.print(f"figure: {figure}", markup=False, soft_wrap=True)


def _range(found: Interval) -> str:
    return f"{found.low:.3f} to {found.high:.3f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
