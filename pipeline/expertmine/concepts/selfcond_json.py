"""Reads the reference implementation's concept files: one JSON file per concept, or a folder with ``concept_list.csv``.

Knows the format only; what becomes of the candidates is `expertmine.concepts.labelling`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertmine.concepts.labelling import Candidate
from expertmine.concepts.streams import lines
from expertmine.corpus.drafts import Refusals, brief, concept_name, remark, take_text
from expertmine.corpus.texts import Texts
from expertmine.errors import UserError
from expertmine.storage.files import read_json

EXPECTED = 'a concept file: {"concept": …, "group": …, "sentences": {"positive": [...], "negative": [...]}}'


def read_concepts(paths: Sequence[Path], texts: Texts, refusals: Refusals) -> Iterator[Candidate]:
    """Read concepts from files and folders.

    A folder with ``concept_list.csv`` (columns ``group``, ``concept``) gives the concepts listed there, from
    ``group/concept.json``; any other folder gives every ``*.json`` file below it.

    Raises:
        UserError: a missing path, an empty folder, a malformed file, or two files with the same concept.
    """
    file_of: dict[str, Path] = {}
    for path in paths:
        for file in _files(path):
            concept = read_concept(file, texts, refusals)
            if concept.name in file_of:
                raise UserError(f"{file}: concept {concept.name!r} appears twice, first in {file_of[concept.name]}")
            file_of[concept.name] = file
            yield concept


def read_concept(path: Path, texts: Texts, refusals: Refusals) -> Candidate:
    """Read one concept file.

    Raises:
        UserError: it is missing or malformed; names the file and the key.
    """
    document = read_json(path, EXPECTED)
    if not isinstance(document, dict) or not isinstance(document.get("concept"), str):
        raise UserError(f'{path}: key "concept" is missing or not text; expected {EXPECTED}')
    sentences = document.get("sentences")
    if not isinstance(sentences, dict):
        raise UserError(f'{path}: key "sentences" is missing or not an object; expected {EXPECTED}')
    splits = []
    for kind in ("positive", "negative"):
        given = enumerate(_listed(path, sentences, kind))
        ids = (take_text(texts, text, f"{path}, sentences.{kind}[{at}]", refusals) for at, text in given)
        splits.append(np.array([text_id for text_id in ids if text_id is not None], np.int32))
    return Candidate(
        name=concept_name(document["concept"], str(path)),
        group=remark(document.get("group")),
        description=remark(document.get("description", document.get("source"))),
        members=splits[0],
        hard_negatives={"listed": lambda: splits[1]},
    )


def _listed(path: Path, sentences: dict[str, Any], kind: str) -> list[str]:
    texts = sentences.get(kind)
    if not isinstance(texts, list):
        raise UserError(f'{path}: key "sentences.{kind}" is missing or not a list; expected {EXPECTED}')
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{path}: sentences.{kind}[{at}] is {type(text).__name__}, expected text")
    return texts


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; expected {EXPECTED}, or a folder of them")
    listing = path / "concept_list.csv"
    files = _in_list(listing) if listing.is_file() else sorted(path.rglob("*.json"))
    if not files:
        raise UserError(f"{path}: holds no *.json file; expected {EXPECTED}")
    return files


def _in_list(listing: Path) -> list[Path]:
    try:
        return list(_listed_files(listing))
    except (csv.Error, ValueError) as error:
        raise UserError(f"{listing}: not CSV ({error}); expected group,concept") from error


def _listed_files(listing: Path) -> Iterator[Path]:
    rows = csv.DictReader((line for _, line in lines(listing)), strict=True)
    if not {"group", "concept"} <= set(rows.fieldnames or ()):
        raise UserError(f"{listing}, line 1: columns are {rows.fieldnames}, expected group,concept")
    for row in rows:
        if row["group"] is None or row["concept"] is None:
            raise UserError(f"{listing}, line {rows.line_num}: a field is missing; expected {len(row)} fields")
        path = listing.parent / str(row["group"]) / f"{row['concept']}.json"
        if not path.resolve().is_relative_to(listing.parent.resolve()):
            raise UserError(f"{listing}, line {rows.line_num}: {brief(row['concept'])} leads out of the folder")
        yield path
