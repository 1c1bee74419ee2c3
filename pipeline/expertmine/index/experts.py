"""The expert index: the top K units of every concept, on disk and in memory. Needs only pyarrow and NumPy.

On disk (``experts/``): ``experts.parquet``, the best units, one row per concept and rank; ``worst.parquet``, the worst
units in the same form; ``random.parquet`` and ``matched.parquet``, controls for steering; ``distribution.parquet``, the
distribution of average precision over each hookpoint; and ``index.json``, the provenance, the concepts with their
counts and chance levels, and the checksums of the tables. An evaluation adds ``steering.json``: the number of experts
to set per concept. A run with several poolings has one index per pooling: ``experts/`` for the first, and for example
``experts-mean/`` for another. A pack (`expertmine.index.pack`) is a smaller index for other people to use; it may be
stored on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from expertmine.errors import UnknownConcept, UserError
from expertmine.index import hub
from expertmine.index.checks import check_metadata, check_rows, read_distribution, read_units
from expertmine.index.distribution import SCHEMA as DISTRIBUTION_SCHEMA
from expertmine.index.names import METADATA, STEERING, index_folder
from expertmine.index.units import SCHEMA, ConceptExperts, Expert
from expertmine.specs.choices import DEFAULT_K, UNITS, Units
from expertmine.specs.identity import ModelIdentity
from expertmine.specs.plan import PLAN_FILE, Plan
from expertmine.specs.settings import Pooling
from expertmine.storage.files import exists, read_json, write_json
from expertmine.storage.locations import Location, location
from expertmine.storage.tables import TableFile
from expertmine.storage.untrusted import EVERY, mismatch

FORMAT = 4
TABLES = (*UNITS, "distribution")
MANNER_BY_DEFAULT: Mapping[str, Any] = {"forcing": "mean", "strength": 1.0, "tokens": "all", "layers": None}
"""The default way to set units; a k chosen for one way says nothing about another."""


class Experts(Mapping[str, ConceptExperts]):
    """The expert index, by concept name."""

    def __init__(self, folder: Location, metadata: Mapping[str, Any]) -> None:
        self.folder = folder
        self.metadata = metadata
        self._tables: dict[str, pa.Table] = {}
        self.model = ModelIdentity(**{each.name: metadata["model"][each.name] for each in fields(ModelIdentity)})

    @classmethod
    def load(cls, path: str | Location, pooling: Pooling | None = None) -> Experts:
        """Open a run folder, an expert index, or one on the Hugging Face hub.

        Args:
            path: a folder; or, if there is no folder of that name, a hub repository as ``user/name`` or
                ``hf://user/name``, optionally with ``@revision``.
            pooling: which of a run's indexes; by default that of the run's first pooling.

        Raises:
            UserError: there is no index, it is incomplete or contradicts itself, or it has another pooling.
        """
        folder = _find(path)
        if pooling is not None and exists(index_folder(folder, pooling) / METADATA):
            folder = index_folder(folder, pooling)
        elif exists(index_folder(folder) / METADATA):
            folder = index_folder(folder)
        elif exists(folder / PLAN_FILE):
            raise UserError(
                f"{folder} has no expert index yet; complete `expertmine mine {folder}` or `expertmine reduce {folder}`"
            )
        metadata = read_json(folder / METADATA, "an expert index, or a run folder that holds one")
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise UserError(f"{folder / METADATA}: not an expert index of format {FORMAT}; reduce the run again")
        check_metadata(metadata, folder / METADATA)
        rows = metadata["top_k"] * len(metadata["concepts"])
        check_rows(_require_table(folder, metadata, "experts"), rows, SCHEMA)
        if pooling not in (None, metadata["pooling"]):
            raise UserError(
                f"{path} has no experts by {pooling} pooling; the index in {folder} uses {metadata['pooling']} pooling"
            )
        return cls(folder, metadata)

    def __len__(self) -> int:
        return len(self.metadata["concepts"])

    def __iter__(self) -> Iterator[str]:
        return (concept["name"] for concept in self.metadata["concepts"])

    def __contains__(self, concept: object) -> bool:
        return concept in self._positions

    def __getitem__(self, concept: str) -> ConceptExperts:
        """The experts of a concept.

        Raises:
            UnknownConcept: there is no concept of that name; suggests the nearest.
        """
        return self.units(concept, "experts")

    def units(self, concept: str, which: Units) -> ConceptExperts:
        """Units of a concept: its experts, its worst units, or controls chosen without regard to average precision.

        Raises:
            UnknownConcept: there is no concept of that name; suggests the nearest.
        """
        kept = self.metadata["top_k"]
        at = self._position_of(concept)
        rows = self._read(which).slice(at * kept, kept).drop_columns(["concept", "group"]).to_pylist()
        description = self.metadata["concepts"][at]["description"]
        return ConceptExperts(concept, description, self.model, tuple(Expert(**row) for row in rows))

    def chosen_k(self, concept: str, under: Mapping[str, Any] | None = None) -> int | None:
        """How many experts steer best by an evaluation; None if the concept was not evaluated or no k steered it.

        Args:
            under: how units will be set (`Steering.manner`); the result is None if the evaluation set them in another
                way. By default any evaluation counts.

        Raises:
            UnknownConcept: there is no concept of that name.
        """
        self._position_of(concept)
        if under is not None and under != self.steering_document["under"]:
            return None
        found: int | None = self.steering.get(concept)
        return found

    def usual_k(
        self, concepts: Sequence[str], manner: Mapping[str, Any] | None = MANNER_BY_DEFAULT
    ) -> tuple[int, bool]:
        """How many experts to set by default: the evaluation's choice for a single concept, or `DEFAULT_K`.

        Args:
            manner: how units will be set (`Steering.manner`); a k that was chosen for another manner does not count,
                and None means a manner that no evaluation uses.

        Returns:
            k, and whether an evaluation chose it.

        Raises:
            UnknownConcept: a concept is not in the index.
        """
        chosen = self.chosen_k(concepts[0], manner) if len(concepts) == 1 and manner is not None else None
        return (min(DEFAULT_K, self.top_k), False) if chosen is None else (chosen, True)

    def concept_metadata(self, concept: str) -> dict[str, Any]:
        """A concept's entry in ``index.json``: sentence counts, chance levels, stability of its best units.

        Raises:
            UnknownConcept: there is no concept of that name.
        """
        metadata: dict[str, Any] = self.metadata["concepts"][self._position_of(concept)]
        return metadata

    def _position_of(self, concept: str) -> int:
        if concept not in self._positions:
            raise UnknownConcept.among(concept, list(self), str(self.folder))
        return self._positions[concept]

    @property
    def top_k(self) -> int:
        """Experts kept per concept."""
        return int(self.metadata["top_k"])

    @property
    def table(self) -> pa.Table:
        """The whole index, one row per concept and rank."""
        return self._read("experts")

    @property
    def steering(self) -> Mapping[str, int | None]:
        """The number of experts that an evaluation chose, by concept; None if no k steered the concept.

        Raises:
            UserError: ``steering.json`` is damaged.
        """
        chosen: dict[str, int | None] = self.steering_document["k"]
        return chosen

    @cached_property
    def steering_document(self) -> Mapping[str, Any]:
        """The contents of ``steering.json``: ``k`` by concept, the ``rule``, and the manner it was chosen ``under``.

        All empty if nothing was evaluated, or if the file belongs to an earlier index in the same folder.

        Raises:
            UserError: ``steering.json`` is damaged.
        """
        path = self.folder / STEERING
        empty = {"rule": "", "under": {}, "k": {}}
        if not exists(path):
            return empty
        document = read_json(path, "the k that an evaluation chose for each concept")
        if not isinstance(document, dict) or document.get("experts") != self.metadata["checksums"]["experts"]:
            return empty
        wrong = mismatch(document, {"rule": str, "k": {EVERY: (int, None)}, "under": {"forcing": str, "tokens": str}})
        chosen: dict[str, int | None] = {} if wrong else document["k"]
        if wrong or any(k is not None and not 0 <= k <= self.top_k for k in chosen.values()):
            raise UserError(f"{path} is damaged: {wrong or 'a k is out of range'}; remove it, and evaluate again")
        return document

    def keep_chosen(
        self, chosen: Mapping[str, int | None], rule: str, under: Mapping[str, Any] = MANNER_BY_DEFAULT
    ) -> None:
        """Record the k that an evaluation chose, and keep earlier choices for other concepts if they were made alike.

        Args:
            rule: how k was chosen, in words. Choices by another rule are dropped.
            under: how units were set (`expertmine.steering.assignment.Steering.manner`). Choices under another manner
                are dropped.

        Raises:
            UserError: the file cannot be written.
        """
        before = self.steering_document
        kept = before["k"] if (before["rule"], before["under"]) == (rule, dict(under)) else {}
        together = dict(sorted({**kept, **chosen}.items()))
        checksum = self.metadata["checksums"]["experts"]
        write_json(self.folder / STEERING, {"experts": checksum, "rule": rule, "under": dict(under), "k": together})
        self.__dict__.pop("steering_document", None)

    @property
    def worst(self) -> pa.Table:
        """The units with the lowest average precision, in the form of `table`; the lowest has rank 1."""
        return self._read("worst")

    @property
    def distribution(self) -> pa.Table:
        """The distribution of average precision, one row per concept and hookpoint.

        Columns: ``concept``, ``hookpoint``, ``layer`` (null outside of layers), ``units``, ``mean_ap``, ``max_ap``,
        ``above_chance`` (units above the concept's threshold, null if it is not known) and ``bins`` (units in each
        twentieth of 0 to 1).
        """
        return self._read("distribution")

    def units_table(self, which: Units) -> pa.Table:
        """Units of all concepts, one row per concept and rank: concepts in the index's order, ranks from 1.

        Raises:
            UserError: the table is missing or damaged.
        """
        return self._read(which)

    def _read(self, name: str) -> pa.Table:
        if name not in self._tables:
            table = _require_table(self.folder, self.metadata, name)
            if name == "distribution":
                self._tables[name] = read_distribution(table, self.metadata, DISTRIBUTION_SCHEMA)
            else:
                self._tables[name] = read_units(table, self.metadata, SCHEMA)
        return self._tables[name]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {concept["name"]: at for at, concept in enumerate(self.metadata["concepts"])}


def _find(path: str | Location) -> Location:
    """The folder that a path, a URL or the name of a hub repository refers to."""
    if not isinstance(path, str | Path):
        return path
    repository = hub.repository(str(path))
    if repository and (str(path).startswith("hf:") or not Path(path).exists()):
        return hub.fetch(repository)
    return location(path)


def _require_table(folder: Location, metadata: Mapping[str, Any], name: str) -> TableFile:
    """An index's table.

    Raises:
        UserError: it is missing, or does not match its checksum.
    """
    path = folder / f"{name}.parquet"
    with suppress(FileNotFoundError):
        table = TableFile.of(path)
        if table.checksum() == metadata["checksums"].get(name):
            return table
    raise UserError(f"{path} is missing or does not match index.json's checksum; reduce the run again")


def is_index_of(folder: Location, plan: Plan) -> bool:
    """Whether a folder has a complete expert index for a plan."""
    try:
        return bool(Experts.load(folder).metadata["plan"] == plan.fingerprint)
    except UserError:  # none yet, or one that a kill left torn
        return False
