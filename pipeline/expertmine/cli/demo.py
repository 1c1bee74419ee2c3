"""``expertmine demo``: the whole job on WordNet's concepts and the embedded model, with a local Ray and Dask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.markup import escape

from expertmine.cli.show.console import number, out, table
from expertmine.cli.show.run import bill
from expertmine.concepts.labelling import Labelling
from expertmine.concepts.senses import Selection, sense_draft
from expertmine.concepts.wordnet import WordNet, wordnet_texts
from expertmine.corpus.drafts import Draft, Refusals
from expertmine.corpus.writer import write_corpus
from expertmine.index.experts import Experts
from expertmine.mining.mine import freeze_plan, run_all
from expertmine.model.load import EMBEDDED
from expertmine.runtime.cluster import Cluster
from expertmine.serving.offline import run_generate
from expertmine.specs.settings import PlanRequest
from expertmine.steering.assignment import Steering
from expertmine.steering.generation import GenerationRequest
from expertmine.storage.locations import Location

SHOWN = ("bird.n.01", "disease.n.01", "food.n.02", "musician.n.01", "clothing.n.01", "weather.n.01")
OF_PARITY = ("man.n.01", "woman.n.01")
"""The concepts that `evaluate parity` needs."""
LADDER = (30, 100, 200)
HELD_OUT_PERCENT = 33


def run_demo(run: Location, count: int) -> None:
    """Mine at least `count` WordNet concepts, and show experts and steered text for six of them.

    Raises:
        UserError: the run folder has other contents.
    """
    _heading(f"1. Concepts from WordNet, the model {EMBEDDED!r}, and the bill")
    with TemporaryDirectory() as corpus:
        write_corpus(_wordnet_concepts(count), Path(corpus), HELD_OUT_PERCENT)
        plan, cost = freeze_plan(run, Path(corpus), PlanRequest(EMBEDDED))
    bill(run, plan, cost)

    _heading("2. Extract (Ray actors), score (Dask workers), reduce")
    run_all(run, ("ray", Cluster()), ("dask", Cluster()))

    _heading("3. Best experts of six concepts: average precision on mined and on held-out sentences")
    experts = Experts.load(run)
    _show_experts(experts)

    _heading("4. do(c, k): text generated with a concept's k best experts set to their expected values")
    requests = [
        GenerationRequest((concept,), Steering(k), count=2, max_new_tokens=30, seed=seed)
        for seed, concept in enumerate(SHOWN)
        for k in (0, *LADDER)
    ]
    _show_texts(requests, list(run_generate(run, requests, "ray")))

    _heading(f"The run is in {run}, with {len(experts)} concepts. Try next:")
    for command in (
        f"expertmine experts {run} bird.n.01 -k 20",
        f'expertmine generate {run} --concept disease.n.01 -k 30 --prompt "she suffered from" -n 5',
        f"expertmine evaluate concept {run} --concept bird.n.01 --concept disease.n.01",
        f"expertmine evaluate parity {run} --estimate exact",
        f"expertmine report {run} --out report.html",
        f"expertmine serve {run}",
    ):
        out.print(f"  {escape(command)}", soft_wrap=True)


def _wordnet_concepts(count: int) -> Draft:
    """Noun closures of WordNet: the concepts to show, and others at random."""
    wordnet = WordNet.load()
    texts = list(wordnet_texts(wordnet))

    def draft(selection: Selection, labelling: Labelling) -> Draft:
        return sense_draft(texts, wordnet, selection, labelling, [wordnet.source], Refusals())

    drawn = draft(Selection(parts=("noun",)), Labelling(min_positives=100, max_positives=5000, limit=count))
    names = dict.fromkeys([*SHOWN, *OF_PARITY, *(concept.name for concept in drawn.concepts)])
    return draft(Selection(names=tuple(names)), Labelling(cap=300))


def _heading(text: str) -> None:
    out.print(f"\n[bold]{escape(text)}[/bold]", soft_wrap=True)


def _show_experts(experts: Experts) -> None:
    made = table("concept", "rank", "unit", "hookpoint", "channel", "AP", "held out")
    for name in SHOWN:
        for expert in experts[name].top(3):
            made.add_row(
                name if expert.rank == 1 else "",
                str(expert.rank),
                str(expert.unit),
                expert.hookpoint,
                str(expert.channel),
                f"{expert.ap:.3f}",
                number(expert.held_out_ap, ".3f"),
            )
    out.print(made)


def _show_texts(requests: Sequence[GenerationRequest], texts: Sequence[list[str]]) -> None:
    concept = None
    for request, written in zip(requests, texts, strict=True):
        if request.concepts[0] != concept:
            (concept,) = request.concepts
            out.print(f"\n[bold]{concept}[/bold]")
        label = f"k = {request.steering.k}" if request.steering.k else "unsteered"
        for at, text in enumerate(written):
            out.print(f"  {label if at == 0 else '':<10}  {escape(text.strip())}", soft_wrap=True)
