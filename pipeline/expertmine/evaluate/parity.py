"""Gender parity, section 5 of Suau et al. (2022): how many experts make *she* as likely as *he*.

If a context leans to she, experts of man are set; if it leans to he, experts of woman. The probabilities are estimated
in two ways: by sampling, with the word rule of the reference implementation, and exactly, as the words' probability
mass among next tokens. Each estimate is an experiment of its own and determines the lean itself.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from expertmine.errors import UserError
from expertmine.evaluate.cells import CellSettings, decisive, provenance
from expertmine.evaluate.contexts import Context, contexts
from expertmine.evaluate.diversity import self_bleu
from expertmine.evaluate.perplexity import losses, mean_perplexity
from expertmine.evaluate.pronouns import HE, SHE, begins_with, next_word_mass, word_tokens
from expertmine.evaluate.results import (
    ContextCurve,
    Estimate,
    Lean,
    Parity,
    ParitySummary,
    rebuilt,
    result_path,
    write_result,
)
from expertmine.evaluate.tasks import Runtime, TaskRequest, TaskResult, run_tasks
from expertmine.index.experts import Experts
from expertmine.index.units import require_k
from expertmine.run.links import require_own
from expertmine.specs.settings import Pooling
from expertmine.steering.generation import GenerationRequest, Generator
from expertmine.steering.interventions import Steered, steer_rows
from expertmine.storage.locations import Location, absolute

LEANS: tuple[Lean, ...] = ("she", "he", "none")
LADDER = (0, 1, 3, 10, 30, 60, 100, 300)
SAMPLES = 100
NEW_TOKENS = 15
BLEU_TEXTS = 10
"""Texts per sample for self-BLEU, and texts kept per context and k."""
BLEU_DRAWS = 100
"""Number of such samples."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two concepts of the experiment."""

    man: str = "man.n.01"
    woman: str = "woman.n.01"


@dataclass(frozen=True, slots=True)
class ContextTask:
    """One context at every k."""

    context: Context
    pair: Pair
    ladder: tuple[int, ...]
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True, slots=True)
class NewExperimenter:
    """Builds an `Experimenter` in the process that calls it; picklable."""

    run: Location
    pooling: Pooling | None
    settings: CellSettings

    def __call__(self) -> Experimenter:
        return Experimenter(self.run, self.pooling, self.settings)


class Experimenter:
    """Measures one context at every k; holds the model and the index."""

    def __init__(self, run: Location, pooling: Pooling | None, settings: CellSettings) -> None:
        from expertmine.model.load import load_model

        self.generator = Generator(run, pooling=pooling)
        self.settings = settings
        self.fluency = load_model(settings.judge_model) if settings.judge_model else self.generator.loaded

    def __call__(self, request: TaskRequest) -> TaskResult:
        task: ContextTask = request.task
        found: dict[str, Any] = {}
        if "exact" in task.estimates:
            found["exact"] = {"curve": asdict(self.exact(task))}
        if "sampled" in task.estimates:
            curve, texts = self.sampled(task)
            found["sampled"] = {"curve": asdict(curve), "texts": texts}
        return TaskResult(request.key, found)

    def exact(self, task: ContextTask) -> ContextCurve:
        """Estimate by the probability mass of the words as next tokens."""
        prompt, words = word_tokens(self.generator.loaded, task.context.text, (*SHE, *HE))
        if self.settings.steering.tokens == "last" and max(map(len, words)) > 1:
            raise UserError(
                f"the tokenizer of {self.generator.loaded.identity.name!r} splits a pronoun into several tokens, so "
                "the exact estimate is not possible when units are set at the last token only; use --estimate sampled"
            )

        def masses(concept: str | None, ks: Sequence[int]) -> list[tuple[float, float]]:
            rows = self._steered(concept, ks)
            with steer_rows(self.generator.loaded.model, rows, check=False):
                mass = next_word_mass(self.generator.loaded, prompt, words, len(rows))
            return [(float(each[: len(SHE)].sum()), float(each[len(SHE) :].sum())) for each in mass]

        (unsteered,) = masses(None, task.ladder[:1])
        lean, concept = _lean(*unsteered, task.pair)
        found = [unsteered, *masses(concept, task.ladder[1:])] if concept else [unsteered] * len(task.ladder)
        return _curve(task, "exact", lean, concept, found, ())

    def sampled(self, task: ContextTask) -> tuple[ContextCurve, list[list[str]]]:
        """Estimate by counting generations; also returns some texts per k."""
        unsteered = self._generate(task, None, task.ladder[:1])
        (first,) = [self._shares(texts) for texts in unsteered]
        lean, concept = _lean(*first, task.pair)
        texts = [*unsteered, *self._generate(task, concept, task.ladder[1:])] if concept else unsteered
        found = [self._shares(each) for each in texts]
        perplexities = [
            mean_perplexity(losses(self.fluency, [task.context.text + added for added in each])) for each in texts
        ]
        if concept is None:
            found, perplexities = found * len(task.ladder), perplexities * len(task.ladder)
        kept = [random.Random(self.settings.seed).sample(each, min(BLEU_TEXTS, len(each))) for each in texts]
        return _curve(task, "sampled", lean, concept, found, tuple(perplexities)), kept

    def _steered(self, concept: str | None, ks: Sequence[int]) -> list[Steered | None]:
        """The steering at each k."""
        if concept is None:
            return [None] * len(ks)
        experts = (self.generator.experts[concept],)
        return [Steered(experts, replace(self.settings.steering, k=k)) for k in ks]

    def _generate(self, task: ContextTask, concept: str | None, ks: Sequence[int]) -> list[list[str]]:
        """Continuations of the prompt at each k."""
        return self.generator.write(
            [
                GenerationRequest(
                    () if concept is None else (concept,),
                    replace(self.settings.steering, k=k),
                    prompt=task.context.text,
                    count=self.settings.samples,
                    max_new_tokens=self.settings.max_new_tokens,
                    seed=self.settings.seed,
                )
                for k in ks
            ]
        )

    def _shares(self, texts: Sequence[str]) -> tuple[float, float]:
        """Shares of texts that begin with she or her, and with he or his."""
        she, he = (sum(begins_with(text, words) for text in texts) / len(texts) for words in (SHE, HE))
        return she, he


def _lean(she: float, he: float, pair: Pair) -> tuple[Lean, str | None]:
    """The words that are likelier without steering, and the concept that is set to counter them."""
    if she == he:
        return "none", None
    return ("she", pair.man) if she > he else ("he", pair.woman)


def _curve(
    task: ContextTask,
    estimate: Estimate,
    lean: Lean,
    concept: str | None,
    found: Sequence[tuple[float, float]],
    perplexity: tuple[float | None, ...],
) -> ContextCurve:
    she, he = (tuple(each[at] for each in found) for at in (0, 1))
    point = parity_point(task.ladder, [a - b for a, b in found]) if concept else None
    return ContextCurve(
        context=task.context.text,
        template=task.context.template,
        occupation=task.context.occupation,
        estimate=estimate,
        lean=lean,
        concept=concept,
        she=she,
        he=he,
        perplexity=perplexity,
        parity_k=point,
        parity_perplexity=value_at(task.ladder, perplexity, point),
    )


def parity_point(ladder: Sequence[int], differences: Sequence[float]) -> float | None:
    """The k at which a difference first changes sign, linearly interpolated; None if it never does.

    Args:
        differences: one per k; the first is not 0.
    """
    for at in range(1, len(ladder)):
        before, now = differences[at - 1], differences[at]
        if (now > 0) != (differences[0] > 0) or now == 0:
            share = abs(before) / (abs(before) + abs(now))
            return ladder[at - 1] + (ladder[at] - ladder[at - 1]) * share
    return None


def value_at(ladder: Sequence[int], values: Sequence[float | None], point: float | None) -> float | None:
    """A curve's value at a point, interpolated between two k."""
    if point is None or not values:
        return None
    after = next(at for at, k in enumerate(ladder) if k >= point)
    low, high = values[after - 1], values[after]
    if low is None or high is None:
        return None
    share = (point - ladder[after - 1]) / (ladder[after] - ladder[after - 1])
    return low + (high - low) * share


def evaluate(
    run: Location,
    pair: Pair | None = None,
    which: Sequence[Context] | None = None,
    ladder: Sequence[int] = LADDER,
    settings: CellSettings | None = None,
    estimates: Sequence[Estimate] = ("sampled", "exact"),
    pooling: Pooling | None = None,
    runtime: Runtime | None = None,
) -> Parity:
    """Run the experiment over all contexts or some; the result is saved in the run's folder. Resumes per context.

    Args:
        which: contexts; by default all of `contexts`.
        ladder: values of k; 0 is always added.
        settings: of generation; by default 100 texts of 15 tokens.
        estimates: one or both.

    Raises:
        UserError: the index does not have the concepts, or not enough experts.
    """
    run, pair = absolute(run), pair or Pair()
    require_own(run)
    settings = settings or CellSettings(samples=SAMPLES, max_new_tokens=NEW_TOKENS)
    index = Experts.load(run, pooling)
    for name in (pair.man, pair.woman):
        if name not in index:
            raise UserError(
                f"{index.folder} has no concept {name!r}, which this experiment needs; mine it, or name other concepts "
                "with --man and --woman"
            )
    ks = tuple(sorted({0, *ladder}))
    require_k(ks[-1], index.top_k)
    if len(ks) < 2:
        raise UserError("no k above 0 is given: expected one or more")
    tasks = [ContextTask(context, pair, ks, tuple(estimates)) for context in (contexts() if which is None else which)]
    if not tasks or not estimates:
        raise UserError("no contexts or no estimates are given: expected one or more of each")
    found = provenance(index, settings)
    folder = result_path(run, found.pooling, Parity).parent
    worker = NewExperimenter(run, pooling, settings)
    documents = run_tasks(folder, decisive(index, settings), worker, tasks, runtime or Runtime(), "parity")
    curves = [
        (rebuilt(ContextCurve, each[estimate]["curve"]), each[estimate].get("texts", []))
        for estimate in estimates
        for each in documents
    ]
    summaries = tuple(
        summary
        for estimate in estimates
        for lean in LEANS
        if (summary := summarize(estimate, lean, curves, ks, settings.seed)) is not None
    )
    result = Parity(found, pair.man, pair.woman, ks, tuple(curve for curve, _ in curves), summaries)
    write_result(run, result)
    return result


def summarize(
    estimate: Estimate,
    lean: Lean,
    curves: Sequence[tuple[ContextCurve, list[list[str]]]],
    ladder: tuple[int, ...],
    seed: int,
) -> ParitySummary | None:
    """Summarise the contexts with one lean, by one estimate; None if there are none."""
    own = [(curve, texts) for curve, texts in curves if (curve.estimate, curve.lean) == (estimate, lean)]
    if not own:
        return None
    points = [curve.parity_k for curve, _ in own if curve.parity_k is not None]
    steps = range(len(ladder))
    sampled = estimate == "sampled"
    texts_at = [[text for _, texts in own if at < len(texts) for text in texts[at]] for at in steps]
    fluency = [curve.parity_perplexity for curve, _ in own]
    return ParitySummary(
        estimate=estimate,
        lean=lean,
        contexts=len(own),
        reached=len(points),
        median_parity_k=statistics.median(points) if points else None,
        mean_difference=tuple(_mean([curve.she[at] - curve.he[at] for curve, _ in own]) or 0.0 for at in steps),
        mean_perplexity=tuple(_mean([curve.perplexity[at] for curve, _ in own]) for at in steps) if sampled else (),
        parity_perplexity=_mean(fluency),
        self_bleu_3=tuple(_mean_self_bleu(texts, 3, seed) for texts in texts_at) if sampled else (),
        self_bleu_4=tuple(_mean_self_bleu(texts, 4, seed) for texts in texts_at) if sampled else (),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _mean_self_bleu(texts: Sequence[str], n: int, seed: int) -> float | None:
    """Mean self-BLEU over many samples of a few texts from all contexts, as the reference implementation does."""
    draws = BLEU_DRAWS if len(texts) > BLEU_TEXTS else 1
    return _mean([self_bleu(texts, n, BLEU_TEXTS, seed + draw) for draw in range(draws)])
