"""``expertmine concepts``: build, join, split and show corpora. Parse, compose, print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from expertmine.cli.groups import with_groups
from expertmine.cli.options import Where
from expertmine.cli.show import corpus as show
from expertmine.concepts.kinds import (
    LISTED_NEGATIVES,
    PARTS_OF_SPEECH,
    SENSE_NEGATIVES,
    By,
    SameName,
    WordNetText,
    known,
)
from expertmine.errors import UserError
from expertmine.storage.locations import location, same

if TYPE_CHECKING:
    from expertmine.concepts.labelling import Labelling
    from expertmine.concepts.sense_corpora import TaggedText
    from expertmine.corpus.drafts import Draft, Refusals
    from expertmine.corpus.reader import Corpus

# pyarrow and WordNet take a moment to load: commands import what they need.

app = typer.Typer(help="Build a corpus of concepts, or show one.", no_args_is_help=True)

which = partial(typer.Option, rich_help_panel="Which concepts")
labels = partial(typer.Option, rich_help_panel="Positives and negatives")


def _free(out: Where) -> Where:
    from expertmine.corpus.writer import check_output_folder

    check_output_folder(out)
    return out


Out = Annotated[
    Where,
    typer.Option(
        "--out",
        parser=location,
        metavar="CORPUS",
        help="Corpus folder to write; may be s3://….",
        show_default=False,
        callback=_free,
        is_eager=True,
    ),
]
CorpusArgument = Annotated[
    Where, typer.Argument(parser=location, metavar="CORPUS", help="Corpus folder; may be s3://….", show_default=False)
]
HeldOut = Annotated[
    float, typer.Option("--held-out", help="Per cent of each concept's sentences to hold out from mining.")
]
ByOption = Annotated[
    By,
    which(help="A concept is a sense key, a synset, or a synset with all hyponyms (closure)."),
]
WithWordNet = Annotated[WordNetText | None, which("--with-wordnet", help="Add WordNet's own sentences.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class DrawOptions:
    """Sizes and seeds of random samples, for any source."""

    limit: Annotated[int | None, which(help="Keep this many concepts, chosen at random.", min=1)] = None
    negatives_size: Annotated[
        int, labels(help="Size of the pool, and of each concept's own sample of negatives.", min=1)
    ] = 1000
    seed: Annotated[int, typer.Option(help="Seed of every random choice.", min=0, max=2**32 - 1)] = 0


@dataclass(frozen=True)
class OwnDataOptions(DrawOptions):
    """For sources that list their concepts and maybe their negatives."""

    negatives: Annotated[
        list[str] | None,
        labels(
            metavar="KIND",
            help="`listed`: the source's own; `pool`: a sample of all sentences, shared by all concepts; `own`: a "
            "sample per concept; `others`: every other sentence. Repeatable; kinds are combined.  [default: listed]",
        ),
    ] = None
    min_positives: Annotated[int, labels(help="Minimum positives per concept.", min=1)] = 1
    max_positives: Annotated[int | None, labels(help="Maximum positives per concept.", min=1)] = None
    cap: Annotated[int | None, labels(help="Sample at most this many positives per concept.", min=1)] = None

    def labelling(self) -> Labelling:
        from expertmine.concepts.labelling import Labelling

        kinds = known("--negatives", self.negatives or ["listed"], LISTED_NEGATIVES)
        return Labelling(
            kinds, self.negatives_size, self.min_positives, self.max_positives, self.cap, self.limit, self.seed
        )


@dataclass(frozen=True)
class SenseOptions(DrawOptions):
    """For sources of senses: which senses, and which negatives."""

    concept: Annotated[
        list[str] | None,
        which(help="Only this synset, such as bird.n.01, or sense key; repeatable.  [default: all]"),
    ] = None
    pos: Annotated[
        list[str] | None,
        which(metavar="PART", help="noun, verb, adjective or adverb; repeatable.  [default: all]"),
    ] = None
    under: Annotated[str | None, which(help="Only this synset and its hyponyms.")] = None
    min_depth: Annotated[int, which(help="Minimum level below --under, or below WordNet's roots.", min=0)] = 0
    max_depth: Annotated[int | None, which(help="Maximum level below --under, or below WordNet's roots.", min=0)] = None
    min_positives: Annotated[
        int | None, which(help="Minimum positives per concept.  [default: 100; 1 with --concept]", min=1)
    ] = None
    max_positives: Annotated[
        int | None,
        which(help="Maximum positives per concept.  [default: 5000 for closures, else none]", min=1),
    ] = None
    dictionary: Annotated[Path | None, which("--dict", help="A WNDB folder instead of the embedded WordNet 3.0.")] = (
        None
    )
    negatives: Annotated[
        list[str] | None,
        labels(
            metavar="KIND",
            help="`pool`: a sample of all sentences, shared by all concepts; `own`: a sample per concept; `others`: "
            "every other sentence; `sisters`: sentences of synsets with the same hypernym; `homographs`: sentences "
            "with other senses of the same words. Repeatable; kinds are combined.  [default: pool]",
        ),
    ] = None
    cap: Annotated[int, labels(help="Sample at most this many positives per concept.", min=1)] = 1000

    def labelling(self, by: By) -> Labelling:
        from expertmine.concepts.labelling import Labelling

        least = self.min_positives or (1 if self.concept else 100)
        most = self.max_positives or (max(5000, least) if by == "closure" and not self.concept else None)
        kinds = known("--negatives", self.negatives or ["pool"], SENSE_NEGATIVES)
        return Labelling(kinds, self.negatives_size, least, most, self.cap, self.limit, self.seed)


@dataclass(frozen=True)
class AnnotatedOptions(SenseOptions):
    """For annotated corpora."""

    by: ByOption = "key"
    with_wordnet: WithWordNet = None
    held_out: HeldOut = 20


@app.command("json")
@with_groups
def from_json(
    paths: Annotated[list[Path], typer.Argument(help="Concept files, or folders of them.", show_default=False)],
    out: Out,
    options: OwnDataOptions,
    held_out: HeldOut = 0,
) -> None:
    """Build a corpus from the concept files of the reference implementation.

    Example: `expertmine concepts json concepts/ --out corpus`
    """
    from expertmine.concepts.labelling import label
    from expertmine.concepts.selfcond_json import read_concepts
    from expertmine.corpus.drafts import Refusals
    from expertmine.corpus.texts import Texts

    texts, refusals = Texts(), Refusals()
    candidates = list(read_concepts(paths, texts, refusals))
    draft = label(candidates, texts, options.labelling(), refusals, [path.name for path in paths])
    _write(draft, out, held_out, options.seed)


@app.command("table")
@with_groups
def from_table(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Tables in CSV, TSV or JSON lines (also .gz), or Parquet.", show_default=False),
    ],
    out: Out,
    options: OwnDataOptions,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    concept_column: Annotated[str, typer.Option(help="Column with the concept's name.")] = "concept",
    label_column: Annotated[str, typer.Option(help="Column with the label.")] = "label",
    labels_: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Whether there are labels; without, every row is a positive.")
    ] = True,
    held_out: HeldOut = 0,
) -> None:
    """Build a corpus from your own tables: a text, a concept and a label (0 or 1) per row.

    Columns `group` and `description` are optional. For a table of positives only, use `--no-labels --negatives pool`.

    Example: `expertmine concepts table mine.csv --out corpus --held-out 20`
    """
    from expertmine.concepts.labelling import label
    from expertmine.concepts.table import Columns, read_tables
    from expertmine.corpus.drafts import Refusals
    from expertmine.corpus.texts import Texts

    texts, refusals = Texts(), Refusals()
    columns = Columns(text_column, concept_column, label_column if labels_ else None)
    candidates = read_tables(paths, columns, texts, refusals)
    draft = label(candidates, texts, options.labelling(), refusals, [path.name for path in paths])
    _write(draft, out, held_out, options.seed)


@app.command("wordnet")
@with_groups
def from_wordnet(
    out: Out,
    options: SenseOptions,
    by: Annotated[
        Literal["synset", "closure"],
        which(help="A concept is a single synset, or a synset with all hyponyms."),
    ] = "closure",
    text: Annotated[WordNetText, typer.Option(help="WordNet texts to use as sentences.")] = "both",
    lemma: Annotated[bool, typer.Option("--lemma/--no-lemma", help="Put the word in front of its definition.")] = False,
    held_out: HeldOut = 33,
) -> None:
    """Build a corpus from WordNet: synsets with their hyponyms, against a shared pool of other sentences.

    Example: `expertmine concepts wordnet --under animal.n.01 --max-depth 3 --out corpus`
    """
    from expertmine.corpus.drafts import Refusals

    _write(_sense_draft(iter(()), [], by, text, options, Refusals(), lemma), out, held_out, options.seed)


@app.command("raganato")
@with_groups
def from_raganato(
    data: Annotated[Path, typer.Argument(metavar="DATA.xml", help="File of sentences; also .gz.", show_default=False)],
    keys: Annotated[Path, typer.Argument(metavar="KEYS.txt", help="File of sense keys; also .gz.", show_default=False)],
    out: Out,
    options: AnnotatedOptions,
) -> None:
    """Build a corpus from an annotated corpus in the all-words format, such as OneSeC or SemCor, of any size.

    Example: `expertmine concepts raganato semcor.data.xml.gz semcor.gold.key.txt.gz --by closure --out corpus`
    """
    from expertmine.concepts.sense_corpora import read_all_words
    from expertmine.corpus.drafts import Refusals

    refusals = Refusals()
    tagged = read_all_words(data, keys, refusals)
    draft = _sense_draft(tagged, [data.name], options.by, options.with_wordnet, options, refusals)
    _write(draft, out, options.held_out, options.seed)


@app.command("lexical-sample")
@with_groups
def from_lexical_sample(
    paths: Annotated[list[Path], typer.Argument(help="Files with <lexelt>; also .gz.", show_default=False)],
    out: Out,
    options: AnnotatedOptions,
) -> None:
    """Build a corpus from a lexical sample: contexts of words, each with its senses.

    Example: `expertmine concepts lexical-sample onesec/*.xml --negatives homographs --out corpus`
    """
    from expertmine.concepts.sense_corpora import read_lexical_sample
    from expertmine.corpus.drafts import Refusals

    refusals = Refusals()
    tagged = chain.from_iterable(read_lexical_sample(path, refusals) for path in paths)
    sources = [path.name for path in paths]
    draft = _sense_draft(tagged, sources, options.by, options.with_wordnet, options, refusals)
    _write(draft, out, options.held_out, options.seed)


@app.command("merge")
def merge_corpora(
    corpora: Annotated[
        list[Where], typer.Argument(parser=location, metavar="CORPUS…", help="Corpus folders.", show_default=False)
    ],
    out: Out,
    same_name: Annotated[
        SameName,
        typer.Option(help="Concepts with the same name are an error (refuse), or become one concept (join)."),
    ] = "refuse",
    min_positives: Annotated[int, typer.Option(help="Minimum positives per concept, after joining.", min=1)] = 1,
    held_out: Annotated[
        float | None, typer.Option(help="Per cent to hold out, chosen again.  [default: the highest of the corpora]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the held-out split.", min=0)] = 0,
) -> None:
    """Join corpora into one, with shared sentences stored once.

    Example: `expertmine concepts merge semcor wordnet --same-name join --out both`
    """
    from expertmine.concepts.merge import merge

    opened = [_other_than(out, path) for path in corpora]
    share = max(corpus.metadata["held_out_percent"] for corpus in opened) if held_out is None else held_out
    _write(merge(opened, same_name, min_positives), out, share, seed)


@app.command("split")
def split_corpus(
    corpus: CorpusArgument,
    out: Out,
    held_out: Annotated[float, typer.Option(help="Per cent of each concept's sentences to hold out.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the split.", min=0)] = 0,
) -> None:
    """Split a corpus again: the same corpus with other sentences held out.

    Example: `expertmine concepts split corpus --held-out 30 --seed 1 --out corpus-1`
    """
    from expertmine.concepts.merge import merge

    _write(merge([_other_than(out, corpus)]), out, held_out, seed)


@app.command("show")
def show_corpus(
    corpus: CorpusArgument,
    concept: Annotated[str | None, typer.Argument(help="A concept to show.", show_default=False)] = None,
    refused: Annotated[bool, typer.Option("--refused", help="List refused input with the reasons.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="List all concepts, not only the largest.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a corpus: counts, lengths, overlaps and refused input; or one concept and its sentences.

    Example: `expertmine concepts show corpus bird.n.01`
    """
    from expertmine.corpus.reader import Corpus

    opened = Corpus.open(corpus)
    opened.check()
    if concept is not None:
        show.concept(opened, concept, as_json)
    elif refused:
        show.refused(opened, as_json)
    else:
        show.corpus(opened, all_, as_json)


def _other_than(out: Where, path: Where) -> Corpus:
    """Open a corpus to read; refuses the output folder, since a failed write would lose the corpus.

    Raises:
        UserError: it is the output folder, or not a corpus.
    """
    from expertmine.corpus.reader import Corpus

    if same(out, path):
        raise UserError(f"--out is {path}, one of the corpora to read; give the new corpus a folder of its own")
    return Corpus.open(path)


def _sense_draft(
    tagged: Iterator[TaggedText],
    sources: Sequence[str],
    by: By,
    text: WordNetText | None,
    options: SenseOptions,
    refusals: Refusals,
    with_lemma: bool = False,
) -> Draft:
    """A draft from annotated texts, and from WordNet's own texts if `text` is given."""
    from expertmine.concepts.senses import Selection, sense_draft
    from expertmine.concepts.wordnet import WordNet, wordnet_texts

    wordnet = WordNet.load(options.dictionary)
    if text is not None:
        tagged = chain(tagged, wordnet_texts(wordnet, text, with_lemma))
        sources = [*sources, f"{wordnet.source}: {text}{' with lemma' if with_lemma else ''}"]
    selection = Selection(
        by=by,
        parts=known("--pos", options.pos or PARTS_OF_SPEECH, PARTS_OF_SPEECH),
        names=tuple(options.concept or ()),
        under=options.under,
        min_depth=options.min_depth,
        max_depth=options.max_depth,
    )
    return sense_draft(tagged, wordnet, selection, options.labelling(by), sources, refusals)


def _write(draft: Draft, out: Where, held_out: float, seed: int) -> None:
    from expertmine.corpus.writer import write_corpus

    show.corpus_written(write_corpus(draft, out, held_out, seed), draft, out)
