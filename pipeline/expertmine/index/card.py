"""The model card of a pack: what the pack is, how to use it, some of its concepts, and its provenance.

Names and descriptions are untrusted text, so they are escaped and never become Markdown, HTML, YAML or Python. Knows
nothing of how a pack is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from expertmine.index.experts import Experts

LISTED = 20
"""Concepts shown in the table."""


def card(experts: Experts, load_from: str, title: str | None, license_: str | None) -> str:
    """A pack's card in Markdown, with the front matter that the hub reads.

    Args:
        experts: the pack.
        load_from: the path that the card's example loads: the name of the pack's folder, or a hub repository.
        title: the heading; unless given, it names the model.
        license_: the pack's licence, if known.
    """
    model, metadata = experts.model, experts.metadata
    name = _text(model_label(model.name))
    sections = [
        _front_matter(model.name, license_),
        f"# {_text(title) if title else f'Expert units of {name}'}",
        f"The {experts.top_k} best expert units of each of {len(experts):,} concepts in {name}, found with expertmine. "
        "A unit (one channel of one module's output) is an expert of a concept when its response alone separates "
        "sentences about the concept from others; its expertise is the average precision (AP) of that separation. When "
        "a concept's experts are set to their expected values during generation, they steer the text towards the "
        "concept: *do(c, k)* of Suau, Zappella and Apostoloff, *Self-conditioning pre-trained language models*, ICML "
        "2022 ([arXiv 2110.02802](https://arxiv.org/abs/2110.02802)). The pack contains no sentences and no weights.",
        "## Use",
        f"```python\n{snippet(experts, load_from)}\n```",
        f"`steer` refuses a model whose weights differ from those that were mined. {_steering_note(experts)}"
        "On the command line, `expertmine experts`, `expertmine compare` and `expertmine nearest` accept this "
        "repository or folder instead of a run.",
        "## Concepts",
        _summary(experts),
        _table(experts),
        "## Provenance",
        _provenance(metadata),
        "## Licence",
        f"{_text(license_)}, as stated by the pack's author."
        if license_
        else "None is stated. The names and descriptions of concepts come from the data that they were mined with, "
        "under that data's licence; ask the pack's author.",
    ]
    return "\n\n".join(sections) + "\n"


def model_label(name: str) -> str:
    """A model's name for display; for a local folder, the last part of its path."""
    return "the embedded model of expertmine" if name == "embedded" else Path(name).name if is_folder(name) else name


def is_folder(name: str) -> bool:
    """Whether a model's name is a folder on the machine that mined it."""
    return Path(name).is_absolute()


def _front_matter(name: str, license_: str | None) -> str:
    lines = ["---", "library_name: expertmine", "tags:"]
    lines += [f"- {tag}" for tag in ("expertmine", "expert-units", "interpretability", "controllable-generation")]
    if name != "embedded" and not is_folder(name):
        lines.append(f"base_model: {_yaml(name)}")
    if license_:
        lines.append(f"license: {_yaml(license_)}")
    return "\n".join([*lines, "---"])


def _yaml(text: str) -> str:
    """Text as a YAML scalar; double quotes escape as in JSON."""
    return json.dumps("".join(letter for letter in text if letter.isprintable()), ensure_ascii=False)


def snippet(experts: Experts, load_from: str) -> str:
    """A Python example that runs as it is, given the pack and the model.

    Args:
        load_from: a folder next to the script, or a hub repository.
    """
    model = experts.model
    best = dict(zip(experts, experts.table["ap"].to_numpy()[:: experts.top_k].tolist(), strict=True))
    concept = max([name for name in experts if experts.steering.get(name)] or experts, key=lambda name: best[name])
    k = experts.usual_k([concept])[0]
    auto, generates = _auto_class(model.architecture)
    if model.name == "embedded":
        imports = ["from expertmine import Experts, load_model, steer"]
        loading = ['loaded = load_model("embedded")', "model, tokenizer = loaded.model, loaded.tokenizer"]
    else:
        arguments = f"{model.name!r}, revision={model.revision!r}" if model.revision else f"{model.name!r}"
        imports = ["from expertmine import Experts, steer", f"from transformers import {auto}, AutoTokenizer"]
        loading = [
            f"tokenizer = AutoTokenizer.from_pretrained({arguments})",
            f"model = {auto}.from_pretrained({arguments})",
        ]
    body = ["    outputs = model(**inputs)"]
    if generates:
        body = [
            "    ids = model.generate(**inputs, do_sample=True, top_k=10, max_new_tokens=40)",
            "print(tokenizer.decode(ids[0]))",
        ]
    return "\n".join(
        [
            *imports,
            "",
            *loading,
            f"experts = Experts.load({load_from!r})",
            "",
            'inputs = tokenizer("I saw", return_tensors="pt")',
            f"with steer(model, experts[{concept!r}], k={k}):",
            *body,
        ]
    )


def _auto_class(architecture: str) -> tuple[str, bool]:
    """The transformers class that loads a model, and whether the model generates text."""
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "AutoModelForCausalLM", True
    return "AutoModelForMaskedLM" if architecture.endswith("ForMaskedLM") else "AutoModel", False


def _steering_note(experts: Experts) -> str:
    steered = sum(chosen is not None for chosen in experts.steering.values())
    if not steered:
        return ""
    return (
        f"For {steered:,} of {len(experts):,} concepts an evaluation chose how many experts to set: "
        "see `experts.chosen_k(concept)`. "
    )


def _summary(experts: Experts) -> str:
    """How good the best units are over all concepts, and how many exceed chance."""
    best = experts.table["ap"].to_numpy()[:: experts.top_k]
    text = (
        f"The median AP of a concept's best unit is {np.median(best):.3f}; over all {len(best):,} concepts it ranges "
        f"from {best.min():.3f} to {best.max():.3f}."
    )
    thresholds = [concept["chance"]["threshold"] for concept in experts.metadata["concepts"]]
    known = [at for at, threshold in enumerate(thresholds) if threshold is not None]
    if known:
        above = sum(best[at] > thresholds[at] for at in known)
        text += (
            f" For {above:,} of {len(known):,} concepts it is above the threshold that the best of all "
            f"{experts.metadata['units']:,} units exceeds with a probability of "
            f"{experts.metadata['scoring']['alpha']:.0%} when labels are shuffled."
        )
    return text


def _table(experts: Experts) -> str:
    """Some concepts, evenly spread from the highest to the lowest best AP."""
    kept = experts.top_k
    best, held_out = (experts.table[name].to_numpy()[::kept] for name in ("ap", "held_out_ap"))
    order = np.argsort(-best, kind="stable")
    shown = np.unique(np.linspace(0, len(order) - 1, min(LISTED, len(order))).round().astype(int))
    lines = ["| concept | description | positives | best AP | held out | threshold |", "|---|---|--:|--:|--:|--:|"]
    for at in order[shown].tolist():
        concept = experts.metadata["concepts"][at]
        threshold = concept["chance"]["threshold"]
        cells = [
            _text(concept["name"]),
            _text(shorten(concept["description"], 100, placeholder="…")),
            f"{concept['positives']:,}",
            f"{best[at]:.3f}",
            "–" if np.isnan(held_out[at]) else f"{held_out[at]:.3f}",
            "–" if threshold is None else f"{threshold:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if len(lines) - 2 < len(best):
        lines += [
            "",
            f"{len(lines) - 2} of {len(best):,} concepts, evenly spread from the highest best AP to the lowest.",
        ]
    return "\n".join(lines)


def _provenance(metadata: Mapping[str, Any]) -> str:
    model, corpus, responses, scoring = (metadata[name] for name in ("model", "corpus", "responses", "scoring"))
    packed = metadata["packed"]
    rows: Sequence[tuple[str, object]] = (
        ("model", f"{model_label(model['name'])}, {model['architecture']}"),
        ("revision", model["revision"] or "the default"),
        ("weights", f"SHA-256 {model['weights']}"),
        ("tokenizer", f"SHA-256 {model['tokenizer']}"),
        ("units", f"{metadata['units']:,} in {len(metadata['hookpoints'])} hookpoints"),
        ("corpus", f"{corpus['sentences']:,} sentences, {corpus['concepts']:,} concepts, {corpus['fingerprint']}"),
        (
            "responses",
            f"{metadata['pooling']} over at most {responses['max_tokens']} tokens, stored as {responses['dtype']}",
        ),
        (
            "chance",
            f"labels shuffled {scoring['permutations']} times, sentences resampled {scoring['resamples']} times",
        ),
        ("plan", metadata["plan"]),
        (
            "packed",
            f"{len(metadata['concepts']):,} of {packed['from']['concepts']:,} concepts, {metadata['top_k']} of "
            f"{packed['from']['top_k']} experts each, by expertmine {packed['expertmine']}",
        ),
    )
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_text(str(value))} |" for name, value in rows)])


def _text(text: str) -> str:
    """Text on one line, escaped for Markdown and HTML."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", line)
