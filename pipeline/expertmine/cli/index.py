"""Commands on an expert index: look up, compare, export, pack. Parse, compose, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from expertmine.cli.options import AsJson, Run, WhichPooling
from expertmine.cli.show import experts as show_experts
from expertmine.cli.show import index as show_index
from expertmine.errors import UserError
from expertmine.specs.choices import Grouping, Units
from expertmine.specs.settings import Pooling
from expertmine.storage.locations import location

if TYPE_CHECKING:
    from expertmine.index.experts import Experts

# The store takes a moment to load, and the hub's client too: commands import what they need.

COMPARED_K = 100
"""Experts a concept that are compared unless told."""

IndexSource = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Run folder, expert index or pack; or a pack on the hub, as user/name.", show_default=False
    ),
]
K = Annotated[
    int | None,
    typer.Option("-k", help="Only so many best experts of each concept count. [default: all in the index]", min=1),
]
ComparedK = Annotated[
    int | None,
    typer.Option("-k", help=f"Experts of each concept to compare. [default: {COMPARED_K}, or all there are]", min=1),
]
Count = Annotated[int, typer.Option("-n", help="How many to list.", min=1)]
Concepts = Annotated[
    list[str] | None, typer.Option("--concept", help="A concept; repeatable. [default: all]", show_default=False)
]


def register_lookups(app: typer.Typer) -> None:
    """Add the commands that only look at an index to an application."""
    for command in (experts, distribution):
        app.command()(command)


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (unit, hookpoint, compare, nearest, export, pack):
        app.command()(command)


def experts(
    run: Run,
    concept: Annotated[
        str | None, typer.Argument(help="Concept name; none for all of them.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many.", min=1)] = 10,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """The best units of a concept; or of every concept its best, and whether that is more than chance.

    Example: `expertmine experts run bird.n.01 -k 20`
    """
    from expertmine.index.experts import Experts

    index = Experts.load(run, pooling)
    show_experts.tell_if_stale(run, index)
    if concept is None:
        show_experts.every_concept(index, as_json)
    else:
        show_experts.one_concept(index, concept, k, as_json)


def distribution(
    run: Run,
    concept: Annotated[
        str | None, typer.Argument(help="Concept name; none for all together.", show_default=False)
    ] = None,
    by: Annotated[Grouping, typer.Option("--by", help="What the rows are.")] = "layer",
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """How average precision is distributed over the model's layers, kinds of module, or hookpoints.

    Example: `expertmine distribution run bird.n.01 --by hookpoint`
    """
    from expertmine.index.distribution import grouped
    from expertmine.index.experts import Experts

    index = Experts.load(run, pooling)
    show_experts.tell_if_stale(run, index)
    if concept is not None:
        index.concept_metadata(concept)  # refuses one that is not there
    show_experts.distribution(grouped(index.distribution, concept, by), concept, by, as_json)


def unit(
    run: IndexSource,
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="UNIT",
            help="Unit id, or hookpoint:channel; none for the units that serve most concepts.",
            show_default=False,
        ),
    ] = None,
    k: K = None,
    count: Count = 20,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """Which concepts a unit serves: all that have it among their experts. Or which units serve most concepts.

    Example: `expertmine unit run transformer.h.4.mlp.c_fc:979`
    """
    from expertmine.index import lookup

    index = _open(run, pooling)
    if which is None:
        show_index.most_shared(lookup.most_shared(index, count, k), as_json)
        return
    place = lookup.find_unit(index, which)
    show_index.unit(index, place, lookup.concepts_of(index, place.unit, k), count, as_json)


def hookpoint(
    run: IndexSource,
    pattern: Annotated[
        str, typer.Argument(help="A hookpoint, or a glob such as 'transformer.h.3.*'.", show_default=False)
    ],
    k: K = None,
    count: Count = 20,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """The experts at hookpoints: how many there are, and which concepts have most of theirs there.

    Example: `expertmine hookpoint run 'transformer.h.3.*' -k 50`
    """
    from expertmine.index import lookup

    show_index.at_hookpoints(lookup.at_hookpoints(_open(run, pooling), pattern, k), count, as_json)


def compare(
    run: IndexSource,
    concept: Annotated[str, typer.Argument(help="Concept name.", show_default=False)],
    other: Annotated[str, typer.Argument(help="Concept name.", show_default=False)],
    k: ComparedK = None,
    count: Count = 20,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """How alike two concepts are: the experts that they share, and how these rank for each.

    Example: `expertmine compare run bird.n.01 fish.n.01 -k 100`
    """
    from expertmine.index import lookup

    index = _open(run, pooling)
    k = min(COMPARED_K, index.top_k) if k is None else k
    show_index.comparison(lookup.compare(index, concept, other, k), count, as_json)


def nearest(
    run: IndexSource,
    concept: Annotated[str, typer.Argument(help="Concept name.", show_default=False)],
    k: ComparedK = None,
    count: Count = 20,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """The concepts that share most experts with one.

    Example: `expertmine nearest run bird.n.01 -k 100`
    """
    from expertmine.index import lookup

    index = _open(run, pooling)
    k = min(COMPARED_K, index.top_k) if k is None else k
    show_index.nearest(index, concept, k, lookup.nearest(index, concept, count, k), as_json)


def export(
    run: IndexSource,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of a selfcond export; file of a table.", show_default=False)
    ],
    form: Annotated[
        Literal["selfcond", "csv", "parquet"],
        typer.Option(
            "--format",
            help="`selfcond`: every unit's expertise as Suau et al.'s code writes it, which needs the run and its "
            "store; `csv` and `parquet`: a table of the index.",
        ),
    ],
    concept: Concepts = None,
    units: Annotated[Units | None, typer.Option("--units", help="Which units a table has. [default: experts]")] = None,
    k: K = None,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """Write expertise for other programs.

    Example: `expertmine export run --format selfcond --out expertise --concept bird.n.01`
    """
    from expertmine.index.export import export_table

    chosen = concept or ()
    if form == "selfcond":
        if units is not None or k is not None:
            raise UserError("--format selfcond writes every unit of the model; leave --units and -k out")
        from expertmine.run.open_run import open_run
        from expertmine.run.selfcond import export_selfcond

        show_index.exported(out, export_selfcond(open_run(location(run)), out, chosen, pooling), as_json)
    else:
        rows = export_table(_open(run, pooling), out, form, chosen, units or "experts", k)
        show_index.exported_table(out, rows, as_json)


def pack(
    run: IndexSource,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", show_default=False)],
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Experts a concept. [default: all in the index]", min=1)
    ] = None,
    concept: Concepts = None,
    title: Annotated[str | None, typer.Option(help="Heading of the card.")] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="Licence of the pack, such as cc-by-4.0; yours to know.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the model, where it was mined from a folder.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Publish it in this repository of the Hugging Face hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository a private one.")] = False,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """Make a small folder of an index, with a card that says what it is: to keep, to give away, or to publish.

    Example: `expertmine pack run --out birds --top-k 100 --concept bird.n.01 --license cc-by-4.0`
    """
    from expertmine.index import hub
    from expertmine.index.pack import FILES, PackRequest
    from expertmine.index.pack import pack as write_pack

    if push is not None:
        hub.require_id(push)
    elif private:
        raise UserError("--private is of a repository to publish in; name one with --push")
    request = PackRequest(top_k, tuple(concept or ()), title, license_, base_model, push)
    packed = write_pack(_open(run, pooling), out, request)
    address = None if push is None else hub.publish(out, FILES, push, private)
    show_index.packed(packed, address, as_json)


def _open(run: str, pooling: Pooling | None) -> Experts:
    from expertmine.index.experts import Experts

    index = Experts.load(run, pooling)
    show_experts.tell_if_stale(location(run), index)
    return index
