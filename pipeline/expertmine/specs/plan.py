"""The plan of a run: frozen, validated on construction, written to ``plan.json`` and read back.

Knows which settings belong together and which values are valid; no model, no store, no cluster.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from expertmine.errors import UserError
from expertmine.specs.checks import require
from expertmine.specs.hookpoints import Hookpoint
from expertmine.specs.identity import CorpusIdentity, ModelIdentity, Segment
from expertmine.specs.layout import Layout
from expertmine.specs.settings import Compression, Pooling, ResponseSpec, ScoringSpec, kept_columns
from expertmine.storage.untrusted import mismatch, schema_of

PLAN_FILE = "plan.json"
"""In a run folder, and what makes a folder one."""
PLAN_FORMAT = 3

Stage = Literal["extract", "score", "assess"]
STAGES: tuple[Stage, ...] = ("extract", "score", "assess")
"""The stages that have tasks and receipts, in order."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run's results, frozen before the model runs on the first sentence."""

    model: ModelIdentity
    patterns: tuple[str, ...]
    """Presets and globs that chose the hookpoints; empty for the default rule."""
    hookpoints: tuple[Hookpoint, ...]
    corpus: CorpusIdentity
    responses: ResponseSpec
    compression: Compression
    segments: tuple[Segment, ...]
    """The stored sentences, including those of earlier corpora."""
    layout: Layout
    scoring: ScoringSpec = field(default_factory=ScoringSpec)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the whole plan; receipts of scoring, and the index, carry it."""
        return _digest(self._body())

    @cached_property
    def extraction_fingerprints(self) -> tuple[str, ...]:
        """Per segment: SHA-256 of the settings that decide its responses and where they are stored.

        Receipts of extraction carry their segment's fingerprint, and so stay valid when the corpus grows.
        """
        body = self._body()
        shared = {name: body[name] for name in ("model", "hookpoints", "responses", "compression")}
        sizes = {name: value for name, value in body["layout"].items() if name != "segments"}
        return tuple(
            _digest({**shared, "layout": sizes, "first_row": self.layout.first_row(at), "segment": asdict(segment)})
            for at, segment in enumerate(self.segments)
        )

    def tasks(self, stage: Stage) -> int:
        """Return a stage's number of tasks: one per partition, or one per pooling and block."""
        if stage == "extract":
            return self.layout.partitions
        if stage == "assess" and not self.scoring.resamples:
            return 0
        return self.layout.blocks * len(self.responses.poolings)

    @property
    def kept_columns(self) -> int | None:
        """Units per block whose statistics other than average precision are stored; None for all."""
        return kept_columns(self.scoring.keep, self.layout.block_units)

    def task_fingerprint(self, stage: Stage, task: int) -> str:
        """Return the fingerprint that a task's receipt must carry."""
        if stage == "extract":
            return self.extraction_fingerprints[self.layout.segment_of(task)]
        return self.fingerprint

    def scoring_task(self, task: int) -> tuple[Pooling, int]:
        """Return the pooling and the block of units of a task of scoring or assessment."""
        return self.responses.poolings[task // self.layout.blocks], task % self.layout.blocks

    def to_json(self) -> dict[str, Any]:
        return {"format": PLAN_FORMAT, "fingerprint": self.fingerprint, **self._body()}

    def _body(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any], source: str) -> Plan:
        """Read a plan back.

        Raises:
            UserError: the document is of another format, incomplete, or does not match its own fingerprint.
        """
        found = document.get("format")
        require(found == PLAN_FORMAT, f"{source}: plan format {found!r}, expected {PLAN_FORMAT}; plan the run again")
        names = ", ".join(field.name for field in fields(cls))
        wrong = mismatch(document, _PLAN)
        require(not wrong, f"{source}: not a plan ({wrong}); expected the sections {names}")
        try:
            plan = cls._of(document)
        except TypeError as error:  # a section has an unknown key
            raise UserError(f"{source}: not a plan ({error}); expected the sections {names}") from error
        except UserError as error:
            raise UserError(f"{source}: the plan has an invalid value: {error}; plan a new run folder") from error
        fault = plan._contradiction()
        require(not fault, f"{source}: the plan contradicts itself: {fault}; plan a new run folder")
        require(
            plan.fingerprint == document.get("fingerprint"),
            f"{source}: its contents do not match its fingerprint, so it was edited or damaged; plan a new run folder",
        )
        return plan

    @classmethod
    def _of(cls, document: dict[str, Any]) -> Plan:
        responses, layout = document["responses"], document["layout"]
        return cls(
            model=ModelIdentity(**document["model"]),
            patterns=tuple(document["patterns"]),
            hookpoints=tuple(Hookpoint(**hookpoint) for hookpoint in document["hookpoints"]),
            corpus=CorpusIdentity(**document["corpus"]),
            responses=ResponseSpec(**{**responses, "poolings": tuple(responses["poolings"])}),
            compression=Compression(**document["compression"]),
            segments=tuple(Segment(**segment) for segment in document["segments"]),
            layout=Layout(**{**layout, "segments": tuple(layout["segments"])}),
            scoring=ScoringSpec(**document["scoring"]),
        )

    def _contradiction(self) -> str | None:
        """Describe what does not fit together although each section is valid by itself; None if all fits."""
        first = 0
        for hookpoint in self.hookpoints:
            if hookpoint.first_unit != first or hookpoint.width < 1 or not hookpoint.name.isprintable():
                return (
                    f"hookpoint {hookpoint.name[:80]!r} does not follow those before it, or its name is not printable"
                )
            first += hookpoint.width
        if first != self.layout.units:
            return f"the hookpoints have {first} units, the layout {self.layout.units}"
        if len({hookpoint.name for hookpoint in self.hookpoints}) < len(self.hookpoints):
            return "two hookpoints have the same name"
        if tuple(segment.sentences for segment in self.segments) != self.layout.segments:
            return "the segments differ from the layout's segments"
        return None


_PLAN = schema_of(Plan)
"""The schema of ``plan.json``."""


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
