"""What a run is made of: frozen, validated when made, written to ``plan.json`` and read back.

Knows no model, no store and no cluster; only which settings belong together and which values make sense.
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
from expertmine.specs.settings import Compression, Pooling, ResponseSpec, ScoringSpec
from expertmine.storage.untrusted import mismatch, schema_of

PLAN_FILE = "plan.json"
"""In a run folder, and what makes a folder one."""
PLAN_FORMAT = 3

Stage = Literal["extract", "score", "assess"]
STAGES: tuple[Stage, ...] = ("extract", "score", "assess")
"""Those that have tasks and receipts, in order."""


@dataclass(frozen=True)
class Plan:
    """All that decides a run's results, frozen before the first sentence is run."""

    model: ModelIdentity
    patterns: tuple[str, ...]
    """Presets and globs that chose the hookpoints; none for the default rule."""
    hookpoints: tuple[Hookpoint, ...]
    corpus: CorpusIdentity
    responses: ResponseSpec
    compression: Compression
    segments: tuple[Segment, ...]
    """The stored sentences; those of earlier corpora too."""
    layout: Layout
    scoring: ScoringSpec = field(default_factory=ScoringSpec)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything in the plan; receipts of scoring, and the index, carry it."""
        return _digest(self._body())

    @cached_property
    def extraction_fingerprints(self) -> tuple[str, ...]:
        """Of each segment: SHA-256 over what decides its responses and where they lie.

        Receipts of extraction carry that of their segment, and so outlive a growing corpus.
        """
        body = self._body()
        shared = {name: body[name] for name in ("model", "hookpoints", "responses", "compression")}
        cut = {name: value for name, value in body["layout"].items() if name != "segments"}
        return tuple(
            _digest({**shared, "layout": cut, "first_row": self.layout.first_row(at), "segment": asdict(segment)})
            for at, segment in enumerate(self.segments)
        )

    def tasks(self, stage: Stage) -> int:
        """How many tasks a stage has: one a partition, or one a block and pooling."""
        if stage == "extract":
            return self.layout.partitions
        if stage == "assess" and not self.scoring.resamples:
            return 0
        return self.layout.blocks * len(self.responses.poolings)

    @property
    def kept_columns(self) -> int | None:
        """Units of a block of which statistics other than average precision are stored; None for all."""
        keep = self.scoring.keep
        return 2 * keep if keep is not None and 2 * keep < self.layout.block_units else None

    def task_fingerprint(self, stage: Stage, task: int) -> str:
        """What a task's receipt must carry."""
        if stage == "extract":
            return self.extraction_fingerprints[self.layout.segment_of(task)]
        return self.fingerprint

    def scoring_task(self, task: int) -> tuple[Pooling, int]:
        """The pooling and the block of units that a task of scoring or assessing stands for."""
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
        except TypeError as error:  # something that no section has
            raise UserError(f"{source}: not a plan ({error}); expected the sections {names}") from error
        except UserError as error:
            raise UserError(f"{source}: no plan that could be carried out: {error}; plan a new run folder") from error
        fault = plan._contradiction()
        require(not fault, f"{source}: contradicts itself: {fault}; plan a new run folder")
        require(
            plan.fingerprint == document.get("fingerprint"),
            f"{source}: its contents do not match its fingerprint; it was edited or damaged. Plan a new run folder.",
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
        """What does not fit together in sections that are sound each by itself."""
        first = 0
        for hookpoint in self.hookpoints:
            if hookpoint.first_unit != first or hookpoint.width < 1 or not hookpoint.name.isprintable():
                return f"hookpoint {hookpoint.name[:80]!r} does not follow those before it, or is no name"
            first += hookpoint.width
        if first != self.layout.units:
            return f"the hookpoints have {first} units, the layout {self.layout.units}"
        if len({hookpoint.name for hookpoint in self.hookpoints}) < len(self.hookpoints):
            return "two hookpoints have the same name"
        if tuple(segment.sentences for segment in self.segments) != self.layout.segments:
            return "its segments are not those of its layout"
        return None


_PLAN = schema_of(Plan)
"""The shape of ``plan.json``."""


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
