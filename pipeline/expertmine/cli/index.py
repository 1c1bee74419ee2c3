"""Commands for an expert index: look up, compare, export, pack. Parse, compose, print."""

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

# The store and the hub's client take a moment to import: commands import what they need.

COMPARED_K = 100
"""Default number of experts to compare."""

IndexSource = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Run folder, expert index or pack; or a pack on the hub, as user/name.", show_default=False
    ),
]
K = Annotated[
    int | None,
    typer.Option("-k", help="Use only the k best experts per concept. [default: all in the index]", min=1),
]
ComparedK = Annotated[
    int | None,
    typer.Option("-k", help=f"Experts per concept to compare. [default: {COMPARED_K}, or all in the index]", min=1),
]
Count = Annotated[int, typer.Option("-n", help="Number of lines to list.", min=1)]
Concepts = Annotated[
    list[str] | None, typer.Option("--concept", help="A concept; repeatable. [default: all]", show_default=False)
]


def register_lookups(app: typer.Typer) -> None:
    """Add the commands that show the experts of an index to an application."""
    for command in (experts, distribution):
        app.command()(command)


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (unit, hookpoint, compare, nearest, export, pack):
        app.command()(command)


def experts(
    run: Run,
    concept: Annotated[
        str | None, typer.Argument(help="Concept name. [default: all concepts]", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Number of experts to list.", min=1)] = 10,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """List the best units of a concept; or the best unit of every concept, with what chance would give.

    Example: `expertmine experts run bird.n.01 -k 20`
    """
    from expertmine.index.experts import Experts

    index = Experts.load(run, pooling)
    show_experts.warn_if_stale(run, index)
    if concept is None:
        show_experts.every_concept(index, as_json)
    else:
        show_experts.one_concept(index, concept, k, as_json)


def distribution(
    run: Run,
    concept: Annotated[
        str | None, typer.Argument(help="Concept name. [default: all concepts together]", show_default=False)
    ] = None,
    by: Annotated[Grouping, typer.Option("--by", help="What each row is.")] = "layer",
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """Show the distribution of average precision over layers, kinds of module, or hookpoints.

    Example: `expertmine distribution run bird.n.01 --by hookpoint`
    """
    from expertmine.index.distribution import grouped
    from expertmine.index.experts import Experts

    index = Experts.load(run, pooling)
    show_experts.warn_if_stale(run, index)
    if concept is not None:
        index.concept_metadata(concept)  # raises UnknownConcept
    show_experts.distribution(grouped(index.distribution, concept, by), concept, by, as_json)


def unit(
    run: IndexSource,
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="UNIT",
            help="Unit id, or hookpoint:channel. [default: the units of most concepts]",
            show_default=False,
        ),
    ] = None,
    k: K = None,
    count: Count = 20,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """List the concepts that a unit is an expert of; or the units that are experts of the most concepts.

    Example: `expertmine unit run transformer.h.4.mlp.c_fc:979`
    """
    from expertmine.index import lookup

    index = _open(run, pooling)
    if which is None:
        show_index.most_shared(lookup.most_shared(index, count, k), as_json)
        return
    address = lookup.find_unit(index, which)
    show_index.unit(index, address, lookup.concepts_of(index, address.unit, k), count, as_json)


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
    """Count the experts at hookpoints, and list the concepts with the most experts there.

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
    """Compare two concepts: the experts that they share, and their ranks for each concept.

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
    """List the concepts that share the most experts with a concept.

    Example: `expertmine nearest run bird.n.01 -k 100`
    """
    from expertmine.index import lookup

    index = _open(run, pooling)
    k = min(COMPARED_K, index.top_k) if k is None else k
    show_index.nearest(index, concept, k, lookup.nearest(index, concept, count, k), as_json)


def export(
    run: IndexSource,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for a selfcond export, or file for a table.", show_default=False)
    ],
    form: Annotated[
        Literal["selfcond", "csv", "parquet"],
        typer.Option(
            "--format",
            help="`selfcond`: every unit's expertise in the format of Suau et al.'s code; needs the run and its store. "
            "`csv`, `parquet`: a table of the index.",
        ),
    ],
    concept: Concepts = None,
    units: Annotated[Units | None, typer.Option("--units", help="Units in the table. [default: experts]")] = None,
    k: K = None,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """Export expertise for other programs.

    Example: `expertmine export run --format selfcond --out expertise --concept bird.n.01`
    """
    from expertmine.index.export import export_table

    chosen = concept or ()
    if form == "selfcond":
        if units is not None or k is not None:
            raise UserError("--format selfcond writes every unit of the model; remove --units and -k")
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
        int | None, typer.Option("--top-k", help="Experts per concept. [default: all in the index]", min=1)
    ] = None,
    concept: Concepts = None,
    title: Annotated[str | None, typer.Option(help="Heading of the model card.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Licence of the pack, such as cc-by-4.0.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the model, if it was mined from a local folder.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Publish the pack in this Hugging Face repository.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """Make a small, self-describing copy of an index, with a model card, to keep, share or publish.

    Example: `expertmine pack run --out birds --top-k 100 --concept bird.n.01 --license cc-by-4.0`
    """
    from expertmine.index import hub
    from expertmine.index.pack import FILES, PackRequest
    from expertmine.index.pack import pack as write_pack

    if push is not None:
        hub.require_id(push)
    elif private:
        raise UserError("--private needs a repository to publish in; name one with --push")
    request = PackRequest(top_k, tuple(concept or ()), title, license_, base_model, push)
    packed = write_pack(_open(run, pooling), out, request)
    address = None if push is None else hub.publish(out, FILES, push, private)
    show_index.packed(packed, address, as_json)


def _open(run: str, pooling: Pooling | None) -> Experts:
    from expertmine.index.experts import Experts

    index = Experts.load(run, pooling)
    show_experts.warn_if_stale(location(run), index)
    return index
