"""The report: safe to open, true to the stored data, and the same every time."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import animal_and_tool
from support.commands import refused, succeed
from support.corpora import LabelledTexts, labels_of, write_lists
from support.partitions import write_responses
from support.plans import plan_new

from expertmine.evaluate.results import (
    Ablation,
    CellResult,
    ClassifierQuality,
    Comparison,
    ConceptCurve,
    ConceptEvaluation,
    ContextCurve,
    Interval,
    Parity,
    ParitySummary,
    Point,
    Provenance,
    Success,
    Variant,
    write_result,
)
from expertmine.index.experts import Experts
from expertmine.mining.mine import run_all
from expertmine.report import evaluation_figures
from expertmine.report.page import ReportOptions, write_report
from expertmine.report.sentences import first_by
from expertmine.report.style import save
from expertmine.run.open_run import open_corpus, open_run
from expertmine.run.sentences import rows_of
from expertmine.run.store import Store
from expertmine.runtime.cluster import Cluster

HOSTILE = '</script><script>alert("c")</script>'
HOSTILE_TEXT = 'the <img src="http://evil.example/x" onerror=alert(1)> ran & "hid" </template> from $x$'


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A mined run with a concept and a sentence that would like to be markup."""
    folder = tmp_path_factory.mktemp("hostile")
    animal, tool = animal_and_tool()
    texts = [HOSTILE_TEXT, *animal.positives]
    concepts = [dataclasses.replace(animal, positives=texts), tool]
    concepts.append(LabelledTexts(HOSTILE, "test", "<b>bold</b> & {{ 7 * 7 }}", texts, tool.positives))
    write_lists(concepts, folder / "corpus", held_out_percent=20)
    plan_new(folder / "run", tiny_model, folder / "corpus")
    run_all(folder / "run", ("serial", Cluster()), ("serial", Cluster()), top_k=20)
    return folder / "run"


@pytest.fixture(scope="session")
def hostile_page(hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(hostile_run, out, ReportOptions(sentences=80))  # all sentences, so that the hostile one is among them
    return out.read_text()


class Tree(HTMLParser):
    """Elements, their attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text.append(data)


def test_the_page_loads_nothing(hostile_page: str) -> None:
    tree = Tree(hostile_page)
    for tag, attributes in tree.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img", "form"}
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on")]
    assert "@import" not in hostile_page
    assert not re.findall(r"url\((?!#)", hostile_page)
    assert "default-src 'none'" in hostile_page


def test_hostile_names_and_sentences_are_text(hostile_page: str) -> None:
    tree = Tree(hostile_page)
    assert len(tree.scripts) == 2
    assert "alert" not in tree.scripts[1]
    rows = json.loads(tree.scripts[0])["rows"]
    assert HOSTILE in [row[0][0] for row in rows]
    text = "".join(tree.text)
    assert HOSTILE in text
    assert HOSTILE_TEXT in text  # also in spite of the mark in it
    assert "<b>bold</b> & {{ 7 * 7 }}" in text
    opened = [tag for tag, _ in tree.elements].count("template")
    assert opened == hostile_page.count("</template>") == 3


def test_the_policy_allows_only_the_pages_own_script(hostile_page: str) -> None:
    import base64
    import hashlib

    script = Tree(hostile_page).scripts[1]
    wanted = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{wanted}'" in hostile_page


def test_the_same_run_gives_the_same_page(mined: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(mined, tmp_path / f"{name}.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


@pytest.fixture(scope="session")
def page(mined: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    written = write_report(mined, out)
    assert written.marks is not None
    assert written.marks.differing == 0
    return out.read_text()


def shown_sentences(page: str, concept: str) -> Iterator[tuple[str, int, str, list[tuple[str, str, str, str]]]]:
    """Of a concept's detail: hookpoint, channel, heading, and (response, label, text, mark) of each sentence."""
    import html

    (detail,) = (part for part in re.findall(r"<template.*?</template>", page, re.DOTALL) if f"<h3>{concept}" in part)
    for hookpoint, channel, section in re.findall(
        r"<section><h4>\d+\. (\S+), channel (\d+)</h4>(.*?)</section>", detail, re.DOTALL
    ):
        for heading, listed in re.findall(r'<p class="g">(.*?)</p><ol class="s">(.*?)</ol>', section, re.DOTALL):
            found = [
                (
                    response.replace("−", "-"),
                    label,
                    html.unescape(re.sub("</?mark>", "", text)),
                    html.unescape("".join(re.findall("<mark>(.*?)</mark>", text))),
                )
                for response, label, text in re.findall(
                    r'<li><i>(.*?)</i><b class="(\w+)".*?</b><span>(.*?)</span></li>', listed, re.DOTALL
                )
            ]
            yield hookpoint, int(channel), heading, found


def test_sentences_are_those_of_an_independent_sort(page: str, mined: Path) -> None:
    plan = open_run(mined).plan
    corpus = open_corpus(open_run(mined))
    stored = Store(open_run(mined)).read_responses("max", range(plan.layout.units))
    rows, texts = rows_of(open_run(mined), corpus), corpus.texts(range(corpus.identity.sentences))
    usable = [at for at in range(len(texts)) if not corpus.held_out[at]]
    looked_at = 0
    for concept in ("animal", "tool"):
        positives, negatives = labels_of(corpus, concept)
        for hookpoint, channel, heading, found in shown_sentences(page, concept):
            place = next(each for each in plan.hookpoints if each.name == hookpoint)
            values = {at: float(stored[rows[at], place.first_unit + channel]) for at in usable}
            among = {
                "highest of all": usable,
                "lowest positives": [at for at in usable if texts[at] in positives],
                "highest negatives": [at for at in usable if texts[at] in negatives],
            }[heading]
            sign = 1 if heading == "lowest positives" else -1
            expected = sorted(among, key=lambda at, values=values, sign=sign: (sign * values[at], rows[at]))
            expected = expected[: 5 if heading == "highest of all" else 3]
            assert [text for _, _, text, _ in found] == [texts[at] for at in expected]
            assert [response for response, _, _, _ in found] == [f"{values[at]:z.2f}" for at in expected]
            for _, label, text, _ in found:
                assert label == ("positive" if text in positives else "negative")
            looked_at += 1
    assert looked_at == 2 * 3 * 3


def test_the_marked_token_has_the_highest_response(page: str, mined: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    looked_at = 0
    for concept in ("animal", "tool"):
        for hookpoint, channel, _, found in shown_sentences(page, concept):
            module = dict(model.named_modules())[hookpoint]
            for response, _, text, mark in found:
                outputs: list[torch.Tensor] = []
                handle = module.register_forward_hook(lambda module, inputs, output, to=outputs: to.append(output))
                encoded = tokenizer(text, return_tensors="pt", return_special_tokens_mask=True)
                with torch.no_grad():
                    model(input_ids=encoded["input_ids"])
                handle.remove()
                values = outputs[0][0, :, channel].masked_fill(encoded["special_tokens_mask"][0].bool(), -torch.inf)
                token = tokenizer.decode([encoded["input_ids"][0, values.argmax()]]).strip()
                assert mark == token
                assert abs(float(values.max()) - float(response)) < 0.01
                looked_at += 1
    assert looked_at == 2 * 3 * (5 + 3 + 3)


def test_a_response_that_differs_from_its_stored_value_is_not_marked(mined: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mined, tmp_path / "run"))
    plan = open_run(run).plan
    store = Store(open_run(run))
    rows = np.arange(len(plan.layout.partition(0)))
    values = store.read_responses("max", range(plan.layout.units))[rows] + np.float16(3)
    write_responses(store, 0, values, store.read_tokens()[rows])
    written = write_report(run, tmp_path / "report.html")
    assert written.marks is not None
    assert written.marks.differing > 0
    page = (tmp_path / "report.html").read_text()
    assert f"{written.marks.differing} responses differ from their stored values" in page
    shown = [each for concept in ("animal", "tool") for *_, found in shown_sentences(page, concept) for each in found]
    assert sum(not mark for *_, mark in shown) >= written.marks.differing  # a unit may be of both concepts


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_other_poolings_mark_their_tokens(pooling: str, tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    plan_new(tmp_path / "run", tiny_model, tiny_corpus, poolings=(pooling,))
    run_all(tmp_path / "run", ("serial", Cluster()), ("serial", Cluster()), top_k=10)
    written = write_report(tmp_path / "run", tmp_path / "report.html")
    assert written.marks is not None
    assert written.marks.differing == 0
    shown = list(shown_sentences((tmp_path / "report.html").read_text(), "animal"))
    assert shown
    for *_, found in shown:
        for _, _, text, mark in found:
            assert mark
            assert pooling == "mean" or text.endswith(mark)


def test_an_index_alone_has_no_sentences_and_says_so(mined: Path, tmp_path: Path) -> None:
    shutil.copytree(mined / "experts", tmp_path / "index")
    written = write_report(tmp_path / "index", tmp_path / "report.html")
    assert written.note == "this is an expert index without its run"
    page = (tmp_path / "report.html").read_text()
    assert "Sentences are not shown: this is an expert index without its run." in page
    assert "<mark>" not in page.split("<template", 1)[1]
    assert "expertmine evaluate concept RUN" in page


def test_concepts_that_are_shown_in_full(mined: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    for options, count in (
        (ReportOptions(sentences=0, concepts=("tool",)), 1),
        (ReportOptions(sentences=0, max_concepts=0), 0),
    ):
        assert write_report(mined, out, options).details == count
        page = out.read_text()
        assert page.count("<template") == count
        assert len(json.loads(Tree(page).scripts[0])["rows"]) == 2


def test_the_command(mined: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    succeed("report", mined, "--out", out, "--sentences", 0, "--title", "A & B")
    assert "<h1>A &amp; B</h1>" in out.read_text()


def test_bad_input_is_refused(mined: Path, planned: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert "no expert index yet" in refused("report", planned, "--out", out)
    assert "did you mean tool" in refused("report", mined, "--out", out, "--concept", "tol")
    assert not out.exists()


@pytest.mark.parametrize("keys, count", [([3, 1, 1, 2, 1], 2), ([0, 0, 0], 2), ([2, 1], 5), ([], 3)])
def test_the_first_of_equals_come_first(keys: list[int], count: int) -> None:
    expected = sorted(range(len(keys)), key=lambda at: (keys[at], at))[:count]
    assert first_by(np.array(keys, np.float64), count).tolist() == expected


# -- what evaluations found: made up here, to see that it is drawn and said


def provenance(index: Experts) -> Provenance:
    experts = index.metadata["checksums"]["experts"]
    return Provenance("tiny", index.model.weights, experts, "max", "mean", 1.0, "all", None, 0, 50, 40, None, "0")


def success(share: float, perplexity: float | None, lexical: float | None = None, text: str = "") -> Success:
    return Success(share, lexical, perplexity, 0.5, 0.75, None, None, (text,) if text else ())


def concept_evaluation(index: Experts) -> ConceptEvaluation:
    points = [Point(k, success(k / 100, 9 + k, None, f"text of <i>k</i> = {k}")) for k in (0, 10, 30)]
    curve = ConceptCurve("animal", "living things", ClassifierQuality(20, 60, 0.01, 0.8), 0, tuple(points), 10)
    other = dataclasses.replace(curve, concept="tool", chosen_k=None, points=(Point(0, success(0.0, None, 0.5)),))
    return ConceptEvaluation(provenance(index), "the most $uccess", 3.0, (curve, other))


def ablation(index: Experts) -> Ablation:
    own = Comparison("experts", Interval(0.5, 0.4, 0.6), Interval(0.3, 0.2, 0.4), 3.5, None, None, None)
    other = Comparison("random", Interval(0.1, 0.0, 0.2), None, None, 0.9, Interval(0.4, 0.3, 0.5), 0.01)
    variants = (Variant("experts", "experts", 1), Variant("random", "random", 1))
    cells = (
        CellResult("animal", 0, "unsteered", success(0.05, 9.0)),
        CellResult("animal", 10, "experts", success(0.5, 30.0)),
    )
    return Ablation(provenance(index), "as evaluated", variants, cells, (own, other))


def parity(index: Experts) -> Parity:
    she = ContextCurve("The nurse said that", "", "nurse", "exact", "she", "man", (0.5, 0.2), (0.1, 0.3), (), 1.5, None)
    he = ContextCurve("The guard said that", "", "", "exact", "he", "woman", (0.1, 0.1), (0.5, 0.3), (), None, None)
    summaries = [
        ParitySummary("exact", "she", 1, 1, 1.5, (0.4, -0.1), (), None, (), ()),
        ParitySummary("exact", "he", 1, 0, None, (-0.4, -0.2), (), None, (), ()),
        ParitySummary("sampled", "she", 1, 0, None, (0.4, 0.1), (20.0, None), None, (None, None), (None, None)),
    ]
    return Parity(provenance(index), "man", "woman", (0, 3), (she, he), tuple(summaries))


def test_evaluations_are_shown(mined: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mined, tmp_path / "run"))
    index = Experts.load(run)
    without = tmp_path / "without.html"
    write_report(run, without, ReportOptions(sentences=0))
    for command in ("concept", "ablation", "parity"):
        assert f"expertmine evaluate {command} RUN" in without.read_text()
    for result in (concept_evaluation(index), ablation(index), parity(index)):
        write_result(run, result)
    out = tmp_path / "with.html"
    write_report(run, out, ReportOptions(sentences=0))
    page = out.read_text()
    assert "expertmine evaluate" not in page
    assert "text of &lt;i&gt;k&lt;/i&gt; = 30" in page
    assert "0.50 (0.40–0.60)" in page
    animal = next(row for row in json.loads(Tree(page).scripts[0])["rows"] if row[0][0] == "animal")
    assert ["10", 10] in animal[0] and ["0.10", 0.1] in animal[0] and ["19", 19.0] in animal[0]
    write_result(
        run, dataclasses.replace(parity(index), provenance=dataclasses.replace(provenance(index), experts="0"))
    )
    write_report(run, out, ReportOptions(sentences=0))
    assert "evaluated with an earlier index" in out.read_text()


@pytest.mark.parametrize("kind", ["concept", "ablation", "parity"])
def test_figures_are_written_the_same_twice(mined: Path, tmp_path: Path, kind: str) -> None:
    index = Experts.load(mined)
    draw = {
        "concept": lambda: evaluation_figures.concept_figure(concept_evaluation(index)),
        "ablation": lambda: evaluation_figures.ablation_figure(ablation(index)),
        "parity": lambda: evaluation_figures.parity_figure(parity(index)),
    }[kind]
    for suffix, magic in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        one, two = (save(draw(), tmp_path / f"{kind}{at}{suffix}").read_bytes() for at in (1, 2))
        assert one.startswith(magic)
        assert one == two


def test_a_figure_of_another_kind_is_refused(mined: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"\.svg, \.png or \.pdf"):
        save(evaluation_figures.concept_figure(concept_evaluation(Experts.load(mined))), tmp_path / "figure.bmp")
