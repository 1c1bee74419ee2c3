"""One cell of an evaluation: generates texts while units of a concept are set, and measures the texts.

Knows neither which cells an evaluation has nor where tasks run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from expertmine.corpus.reader import Corpus
from expertmine.evaluate.classifier import Classifier, train
from expertmine.evaluate.diversity import distinct, self_bleu
from expertmine.evaluate.lexical import Lemmas, lemmas_of
from expertmine.evaluate.perplexity import losses, perplexity
from expertmine.evaluate.results import Provenance, Success
from expertmine.evaluate.tasks import TaskRequest, TaskResult
from expertmine.index.experts import Experts
from expertmine.run.open_run import open_corpus, open_run
from expertmine.specs.choices import Units
from expertmine.specs.settings import Pooling
from expertmine.steering.assignment import Steering
from expertmine.steering.generation import GenerationRequest, Generator
from expertmine.storage.locations import Location

EXAMPLES = 5
"""Texts kept per cell."""
_JUDGES = 8
"""Classifiers that a worker caches; tasks are ordered by concept."""


@dataclass(frozen=True, slots=True)
class SteeringCell:
    """One concept and which of its units to set."""

    concept: str
    k: int
    units: Units = "experts"
    block: int = 1


@dataclass(frozen=True, slots=True)
class CellSettings:
    """Settings shared by all cells of an evaluation."""

    samples: int = 100
    """Texts per cell."""
    max_new_tokens: int = 40
    steering: Steering = field(default_factory=Steering)
    """Each cell replaces its k and block."""
    seed: int = 0
    judge_model: str | None = None
    """Model to measure perplexity with; None for the steered model, unsteered."""


def provenance(index: Experts, settings: CellSettings) -> Provenance:
    """The provenance of an evaluation's figures."""
    return Provenance(
        model=index.model.name,
        weights=index.model.weights,
        experts=index.metadata["checksums"]["experts"],
        pooling=index.metadata["pooling"],
        forcing=settings.steering.forcing,
        strength=settings.steering.strength,
        tokens=settings.steering.tokens,
        layers=settings.steering.layers,
        seed=settings.seed,
        samples=settings.samples,
        max_new_tokens=settings.max_new_tokens,
        judge_model=settings.judge_model,
        expertmine=version("expertmine"),
    )


def decisive(index: Experts, settings: CellSettings) -> Mapping[str, Any]:
    """Everything but the cell itself that decides a cell's result."""
    checksums = {name: index.metadata["checksums"][name] for name in ("experts", "worst", "random", "matched")}
    return {
        "index": {"checksums": checksums, "plan": index.metadata["plan"], "model": asdict(index.model)},
        "settings": asdict(replace(settings, steering=replace(settings.steering, k=0, block=1))),
        "expertmine": version("expertmine"),
    }


@dataclass(frozen=True, slots=True)
class NewMeasurer:
    """Builds a `Measurer` in the process that calls it; picklable."""

    run: Location
    pooling: Pooling | None
    settings: CellSettings

    def __call__(self) -> Measurer:
        return Measurer(self.run, self.pooling, self.settings)


class Measurer:
    """Generates the texts of a cell and measures them; holds the model and the latest concepts' classifiers."""

    def __init__(self, run: Location, pooling: Pooling | None, settings: CellSettings) -> None:
        from expertmine.model.load import load_model

        self.generator = Generator(run, pooling=pooling)
        self.corpus: Corpus = open_corpus(open_run(run))
        self.settings = settings
        self.fluency = load_model(settings.judge_model) if settings.judge_model else self.generator.loaded
        self.judge = lru_cache(_JUDGES)(self._judge)

    def _judge(self, concept: str) -> tuple[Classifier, Lemmas | None]:
        found = self.corpus.concept(concept)
        return train(self.corpus, found.concept_id, self.settings.seed), lemmas_of(found.name, found.sense_keys)

    def __call__(self, request: TaskRequest) -> TaskResult:
        """Measure one cell.

        Raises:
            UserError: too few held-out sentences of the concept, or no such units.
        """
        cell: SteeringCell = request.task
        settings = self.settings
        steering = replace(settings.steering, k=cell.k, block=cell.block)
        generation = GenerationRequest(
            (cell.concept,),
            steering,
            cell.units,
            count=settings.samples,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
        )
        classifier, lemmas = self.judge(cell.concept)
        texts = [text.strip() for text in self.generator(generation)]
        written = [text for text in texts if text]
        hits = None if lemmas is None else sum(map(lemmas.found_in, written)) / len(texts)
        success = Success(
            share=int(classifier(written).sum()) / len(texts) if written else 0.0,
            lexical=hits,
            perplexity=perplexity(losses(self.fluency, written)),
            distinct_1=distinct(written, 1),
            distinct_2=distinct(written, 2),
            self_bleu_3=self_bleu(written, 3, seed=settings.seed),
            self_bleu_4=self_bleu(written, 4, seed=settings.seed),
            examples=tuple(texts[:EXAMPLES]),
        )
        return TaskResult(
            request.key,
            {
                "success": asdict(success),
                "classifier": asdict(classifier.quality),
                "lemmas": 0 if lemmas is None else len(lemmas),
            },
        )
