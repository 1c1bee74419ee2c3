"""A run's expertise in the files of Suau et al.'s implementation (apple/ml-selfcond, ``selfcond/expertise.py``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from expertmine.corpus.reader import Concept
from expertmine.errors import UserError
from expertmine.run.ledger import require_complete
from expertmine.run.open_run import OpenRun, open_corpus
from expertmine.run.store import Store
from expertmine.specs.plan import Plan
from expertmine.specs.settings import Pooling
from expertmine.storage.file_names import file_name, file_names
from expertmine.storage.files import write_atomically
from expertmine.telemetry.progress import track

GATHERED = 1_000_000_000
"""Bytes of statistics that are held at once. A chunk of the store holds one block of units of *every* concept, so each
pass over the store gathers as many concepts as fit; more memory means fewer passes."""


_STORED = {"ap": np.float64, "off_mean": np.float32, "on_p50": np.float32, "on_p90": np.float32}
"""Statistics of the reference's table, in its order."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """A hookpoint as the reference names it, and where its units are."""

    name: str
    units: range
    first_row: int
    """Of the table, which has layers by name."""


def export_selfcond(
    run: OpenRun, out: Path, concepts: Sequence[str] = (), pooling: Pooling | None = None, gathered: int = GATHERED
) -> list[Path]:
    """Write the expertise of every unit as the reference does; returns the folder of each concept.

    Each concept has ``out/MODEL/GROUP/CONCEPT/expertise/`` with ``expertise.csv`` and, written after it,
    ``expertise_info.json``. Average precision and forcing values are those of the mined sentences; the numbers are the
    reference's own where the run was planned with its pooling (``--pooling reference --dtype float32``).

    Args:
        concepts: those to export; all unless given.
        pooling: whose expertise; the run's first unless given.
        gathered: bytes of statistics to hold at once. One concept's file is made in memory beside that.

    Raises:
        UnknownConcept: there is none of a name.
        UserError: scoring is not complete, the run kept statistics of some units only, or the disk is full.
    """
    plan = run.plan
    pooling = pooling or plan.responses.poolings[0]
    if pooling not in plan.responses.poolings:
        raise UserError(f"{run} has no {pooling} pooling; it has {', '.join(plan.responses.poolings)}")
    if plan.kept_columns is not None:
        raise UserError(
            f"{run} keeps statistics other than average precision for only {plan.kept_columns} units per block, but "
            "this format has them for every unit; plan and score it again with `--keep all`"
        )
    require_complete(run, "score")
    store, corpus = Store(run), open_corpus(run)
    chosen = [corpus.concept(name) for name in dict.fromkeys(concepts)] or list(corpus.concepts)
    # File names are made unique among all concepts, so that a concept has the same folder whichever are exported.
    groups = file_names(concept.group for concept in corpus.concepts)
    names = {
        group: file_names(each.name for each in corpus.concepts if each.group == group)
        for group in {each.group for each in chosen}
    }
    model = out / file_name(_model_name(plan.model.name))
    layers = _layers(plan)
    found = []
    for concept, statistics in track(_gathered(store, plan, pooling, chosen, gathered), "export", len(chosen)):
        folder = model / groups[concept.group] / names[concept.group][concept.name] / "expertise"
        write_atomically(folder / "expertise.csv", _expertise_csv(concept, layers, statistics))
        write_atomically(folder / "expertise_info.json", _info_json(concept, layers, statistics["ap"]))
        found.append(folder)
    return found


def _model_name(name: str) -> str:
    """A hub id as it is; of a folder only its own name."""
    return Path(name).name if Path(name).is_absolute() else name


def _layers(plan: Plan) -> list[_Layer]:
    """The hookpoints as the reference has them: the module's first output, sorted by that name."""
    found, row = [], 0
    for name, hookpoint in sorted((f"{hookpoint.name}:0", hookpoint) for hookpoint in plan.hookpoints):
        found.append(_Layer(name, hookpoint.units, row))
        row += hookpoint.width
    return found


def _gathered(
    store: Store, plan: Plan, pooling: Pooling, concepts: Sequence[Concept], memory: int
) -> Iterator[tuple[Concept, dict[str, NDArray[np.floating[Any]]]]]:
    """Concepts with their statistics, each (units,), as many at once as fit the memory.

    Beside the gathered statistics, a chunk of one statistic, (concepts, units of a block), is held.
    """
    units = plan.layout.units
    each = units * sum(np.dtype(dtype).itemsize for dtype in _STORED.values())
    at_once = max(1, memory // each)
    for first in range(0, len(concepts), at_once):
        group = concepts[first : first + at_once]
        rows = [concept.concept_id for concept in group]
        statistics = {name: np.empty((len(group), units), dtype) for name, dtype in _STORED.items()}
        for block in range(plan.layout.blocks):
            of_block = plan.layout.block(block)
            for name, values in statistics.items():
                values[:, of_block.start : of_block.stop] = store.read_scores(pooling, name, of_block)[rows]
        for at, concept in enumerate(group):
            yield concept, {name: values[at] for name, values in statistics.items()}


def _expertise_csv(
    concept: Concept, layers: Sequence[_Layer], statistics: Mapping[str, NDArray[np.floating[Any]]]
) -> bytes:
    """The reference's table as CSV: a row for each unit, layers by name, statistics with the digits of a float32."""
    header = ",".join([*_STORED, "layer", "unit", "uuid", "concept", "group"])
    last = pa.scalar(f"{_quoted(concept.name)},{_quoted(concept.group)}\n")
    parts = [f"{header}\n".encode()]
    for layer in layers:
        own = slice(layer.units.start, layer.units.stop)
        # Arrow writes the shortest digits that are read back as the same float32.
        numbers = [pa.array(statistics[name][own].astype(np.float32)).cast(pa.string()) for name in _STORED]
        channels = pa.array(np.arange(len(layer.units))).cast(pa.string())
        rows = pa.array(layer.first_row + np.arange(len(layer.units))).cast(pa.string())
        lines = pc.binary_join_element_wise(*numbers, pa.scalar(_quoted(layer.name)), channels, rows, last, ",")
        _, offsets, content = lines.buffers()
        assert lines.offset == 0 and offsets is not None
        end = int(np.frombuffer(offsets, np.int32)[len(lines)])
        parts.append(content.slice(0, end).to_pybytes())
    return b"".join(parts)


def _quoted(text: str) -> str:
    """A field of a CSV file, in quotes only where it needs them."""
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\r\n') else text


def _info_json(concept: Concept, layers: Sequence[_Layer], ap: NDArray[np.floating[Any]]) -> bytes:
    """The reference's summary: how many units are above each of 501 thresholds of average precision."""
    thresholds = np.linspace(0.5, 1.0, 501)
    above = len(ap) - np.searchsorted(np.sort(ap), thresholds, side="right")
    document = {
        "concept": concept.name,
        "group": concept.group,
        "max_ap": float(ap.max()),
        "layer_names": [layer.name for layer in layers],
        "total_neurons": len(ap),
        "neurons_at_ap": {
            f"{threshold:.5f}": count for threshold, count in zip(thresholds, above.tolist(), strict=True)
        },
    }
    return json.dumps(document, indent=4).encode()
