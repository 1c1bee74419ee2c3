"""Synthetic expert indexes with any number of concepts, without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from expertmine.index.distribution import BINS
from expertmine.index.distribution import SCHEMA as DISTRIBUTION
from expertmine.index.experts import Experts
from expertmine.index.units import SCHEMA
from expertmine.index.writer import write_tables
from expertmine.specs.choices import UNITS

HOOKPOINTS = ("model.h.0.in", "model.h.0.out", "model.h.1.in", "model.h.1.out")


def made_metadata(concepts: Sequence[str], width: int) -> dict[str, Any]:
    chance = {"expected_ap": 0.2, "threshold": 0.4, "units_above": 7, "labels_of": concepts[0]}
    known = {"positives": 20, "negatives": 80, "held_out": 10, "chance": chance, "stability": {"10": 0.7}}
    model = {"name": "ann/model", "revision": "v1", "architecture": "GPT2LMHeadModel", "weights": "1", "tokenizer": "2"}
    return {
        "units": width * len(HOOKPOINTS),
        "plan": "0" * 64,
        "pooling": "max",
        "model": model,
        "corpus": {"fingerprint": "3" * 64, "sentences": 1000, "concepts": len(concepts)},
        "responses": {"poolings": ["max"], "dtype": "float16", "max_tokens": 128, "special_tokens": False},
        "scoring": {"permutations": 20, "resamples": 100, "seed": 0, "alpha": 0.05},
        "hookpoints": [{"name": name, "width": width, "first_unit": at * width} for at, name in enumerate(HOOKPOINTS)],
        "concepts": [
            {"name": name, "group": "made", "description": f"about {name}", **known} for name in concepts
        ],
    }  # fmt: skip


def made_tables(units: np.ndarray, metadata: Mapping[str, Any]) -> dict[str, pa.Table]:
    """Tables in which every kind has the same units (concepts, k); average precision falls with the rank."""
    concepts, k = units.shape
    width = metadata["hookpoints"][0]["width"]
    names = [concept["name"] for concept in metadata["concepts"]]
    flat = units.ravel()
    columns: dict[str, Any] = {name: np.zeros(flat.size) for name in SCHEMA.names} | {
        "concept": np.repeat(np.array(names, dtype=object), k),
        "group": np.full(flat.size, "made", dtype=object),
        "rank": np.tile(np.arange(1, k + 1), concepts),
        "unit": flat,
        "hookpoint": np.array(HOOKPOINTS, dtype=object)[flat // width],
        "channel": flat % width,
        "ap": (0.9 - 0.8 * np.arange(k) / k - np.arange(concepts)[:, np.newaxis] * 1e-5).ravel(),
    }
    table = pa.table({field.name: pa.array(columns[field.name]).cast(field.type) for field in SCHEMA}, schema=SCHEMA)
    rows = concepts * len(HOOKPOINTS)
    bins = np.zeros((rows, BINS), np.int32)
    bins[:, 4] = width
    distribution = {
        "concept": pa.array(np.repeat(np.array(names, dtype=object), len(HOOKPOINTS))),
        "hookpoint": pa.array(list(HOOKPOINTS) * concepts),
        "layer": pa.array([0, 0, 1, 1] * concepts, pa.int32()),
        "units": pa.array(np.full(rows, width, np.int32)),
        "mean_ap": pa.array(np.full(rows, 0.2)),
        "max_ap": pa.array(np.full(rows, 0.9)),
        "above_chance": pa.array(np.full(rows, 3, np.int32)),
        "bins": pa.FixedSizeListArray.from_arrays(pa.array(bins.ravel()), BINS),
    }
    return {**dict.fromkeys(UNITS, table), "distribution": pa.table(distribution, schema=DISTRIBUTION)}


def make_index(folder: Path, units: np.ndarray, width: int, names: Sequence[str] | None = None) -> Experts:
    """Write and load an index of units (concepts, k) for a model with four hookpoints."""
    metadata = made_metadata(names or [f"concept {at}" for at in range(len(units))], width)
    write_tables(folder, made_tables(units, metadata), metadata)
    return Experts.load(folder)
