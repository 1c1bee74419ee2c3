"""Results of evaluations as plain data: written to ``RUN/evaluation/<pooling>/`` and read by the report.

A figure that is not known (no text to measure, no lemmas to search for) is None. Knows nothing of how it is measured.
"""

from __future__ import annotations

import types
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from expertmine.errors import UserError
from expertmine.run.paths import evaluation_folder
from expertmine.specs.choices import Forcing, Tokens, Units
from expertmine.storage.files import exists, read_json, write_json
from expertmine.storage.locations import Location

FORMAT = 1

Estimate = Literal["sampled", "exact"]
"""How a word's probability is estimated: its share of generations, or its mass among next tokens."""
Lean = Literal["she", "he", "none"]


@dataclass(frozen=True, slots=True)
class Provenance:
    """The model, index and settings of an evaluation."""

    model: str
    weights: str
    """SHA-256, as in the index."""
    experts: str
    """Checksum of the expert table, to detect whether the index has changed."""
    pooling: str
    forcing: Forcing
    strength: float
    tokens: Tokens
    layers: tuple[int, ...] | None
    seed: int
    samples: int
    """Generations per cell."""
    max_new_tokens: int
    judge_model: str | None
    """Model that perplexity is measured with; None for the steered model, unsteered."""
    expertmine: str
    """Version of expertmine."""

    @property
    def reader(self) -> str:
        """The model that perplexity is measured with, in words."""
        return "the unsteered model" if self.judge_model is None else self.judge_model


@dataclass(frozen=True, slots=True)
class ClassifierQuality:
    """How well a classifier does on sentences it was not trained on (cross-validation)."""

    positives: int
    negatives: int
    false_positives: float
    """Share of negatives called positive."""
    recall: float
    """Share of positives called positive."""


@dataclass(frozen=True, slots=True)
class Success:
    """Measurements of a set of generations."""

    share: float
    """Share of generations that the classifier assigns to the concept; an empty text counts as not assigned."""
    lexical: float | None
    """Share of generations with a word of the concept (a lemma of its WordNet closure); None if it has no lemmas."""
    perplexity: float | None
    """Under the unsteered model, over all tokens."""
    distinct_1: float
    """Distinct words as a share of all."""
    distinct_2: float
    """Distinct word pairs as a share of all: low means repetitive."""
    self_bleu_3: float | None
    """Mean BLEU of each text against the others, up to 3-grams: high means similar."""
    self_bleu_4: float | None
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """Generations at one k."""

    k: int
    success: Success


@dataclass(frozen=True, slots=True)
class ConceptCurve:
    """One concept at every k."""

    concept: str
    description: str
    classifier: ClassifierQuality
    lemmas: int
    """Number of words that lexical success searches for."""
    points: tuple[Point, ...]
    chosen_k: int | None
    """The k chosen by the evaluation's rule; None if no k meets it."""


@dataclass(frozen=True, slots=True)
class ConceptEvaluation:
    """Success and fluency against k (``concept.json``)."""

    provenance: Provenance
    rule: str
    """How k was chosen, in words."""
    fluency: float
    """Perplexity that the rule allows, as a multiple of the perplexity at k = 0."""
    curves: tuple[ConceptCurve, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """The units that an ablation sets."""

    name: str
    """For example ``experts``, ``random``, ``matched``, ``block 2`` (the k units after the experts) or ``worst``."""
    units: Units
    block: int


@dataclass(frozen=True, slots=True)
class CellResult:
    """One concept with one variant's units set."""

    concept: str
    k: int
    variant: str
    success: Success


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over concepts and its 95 % interval from resampled concepts."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant over all concepts, compared with the experts."""

    variant: str
    share: Interval
    lexical: Interval | None
    perplexity_ratio: float | None
    """Median over concepts of the perplexity as a multiple of the unsteered perplexity."""
    beaten: float | None
    """Share of concepts where the experts succeed more often than this variant, ties count half; None for experts."""
    difference: Interval | None
    """Success of the experts minus success of this variant."""
    p_value: float | None
    """Of the difference: exact or sampled sign flips over concepts, two-sided."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """Experts compared with other units (``ablation.json``)."""

    provenance: Provenance
    k_rule: str
    """How each concept's k was chosen, in words."""
    variants: tuple[Variant, ...]
    cells: tuple[CellResult, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class ContextCurve:
    """One context of the parity experiment at every k, by one estimate."""

    context: str
    """The prompt."""
    template: str
    occupation: str
    estimate: Estimate
    lean: Lean
    """The words that are likelier without steering."""
    concept: str | None
    """The concept whose experts are set, that of the less likely words; None if there is no lean."""
    she: tuple[float, ...]
    """Probability of she or her at each k."""
    he: tuple[float, ...]
    """Probability of he or his at each k."""
    perplexity: tuple[float | None, ...]
    """Mean over the generations' perplexities at each k; empty for the exact estimate."""
    parity_k: float | None
    """The k of the first change of sign of she - he, linearly interpolated; None if there is none."""
    parity_perplexity: float | None
    """Perplexity interpolated at `parity_k`."""


@dataclass(frozen=True, slots=True)
class ParitySummary:
    """The contexts with one lean, by one estimate."""

    estimate: Estimate
    lean: Lean
    contexts: int
    reached: int
    """Contexts with a parity point."""
    median_parity_k: float | None
    """Over the contexts with a parity point."""
    mean_difference: tuple[float, ...]
    """Mean of she - he at each k."""
    mean_perplexity: tuple[float | None, ...]
    """At each k; empty for the exact estimate."""
    parity_perplexity: float | None
    """Mean over the contexts with a parity point."""
    self_bleu_3: tuple[float | None, ...]
    """At each k; empty for the exact estimate."""
    self_bleu_4: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Parity:
    """Section 5 of the paper (``parity.json``)."""

    provenance: Provenance
    man: str
    woman: str
    ladder: tuple[int, ...]
    curves: tuple[ContextCurve, ...]
    summaries: tuple[ParitySummary, ...]


Result = TypeVar("Result", ConceptEvaluation, Ablation, Parity)

_FILES = {ConceptEvaluation: "concept.json", Ablation: "ablation.json", Parity: "parity.json"}


def result_path(run: Location, pooling: str, kind: type[ConceptEvaluation] | type[Ablation] | type[Parity]) -> Location:
    """The file of an evaluation's result."""
    return evaluation_folder(run, pooling) / _FILES[kind]


def write_result(run: Location, result: ConceptEvaluation | Ablation | Parity) -> Location:
    """Save a result and replace an earlier one; returns its path.

    Raises:
        UserError: the file cannot be written.
    """
    path = result_path(run, result.provenance.pooling, type(result))
    write_json(path, {"format": FORMAT, **asdict(result)})
    return path


def read_result(run: Location, pooling: str, kind: type[Result]) -> Result | None:
    """Read a saved result; None if there is none.

    Raises:
        UserError: the file is damaged or of another format.
    """
    path = result_path(run, pooling, kind)
    if not exists(path):
        return None
    document = read_json(path, "the result of an evaluation")
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise UserError(f"{path}: not a result of format {FORMAT}; run the evaluation again")
    try:
        found: Result = rebuilt(kind, document)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); run the evaluation again") from error
    return found


def rebuilt(kind: Any, value: Any) -> Any:
    """Rebuild a dataclass, tuple or scalar of a given type from its JSON form."""
    if value is None:
        return None
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{field.name: rebuilt(hints[field.name], value[field.name]) for field in fields(kind)})  # type: ignore[operator]
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = [each for each in get_args(kind) if each is not type(None)]
        return rebuilt(inner, value)
    if get_origin(kind) is tuple:
        return tuple(rebuilt(get_args(kind)[0], each) for each in value)
    return value
