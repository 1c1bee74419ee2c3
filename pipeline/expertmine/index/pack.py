"""Packs: an expert index reduced to what other people need, in a self-describing folder.

A pack is an expert index (`expertmine.Experts` opens it from a folder or from the Hugging Face hub) with a model card.
It contains no sentences and no weights; a hash of the weights identifies the model. Knows nothing of uploading.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from expertmine.errors import UserError
from expertmine.index.card import card, is_folder
from expertmine.index.experts import TABLES, Experts
from expertmine.index.export import cut
from expertmine.index.lookup import k_or_all
from expertmine.index.names import METADATA, STEERING
from expertmine.index.writer import write_tables
from expertmine.specs.choices import UNITS
from expertmine.storage.files import read_json, write_atomically, write_json, writing
from expertmine.storage.locations import Location, same

README = "README.md"
FILES = (*(f"{name}.parquet" for name in TABLES), METADATA, STEERING, README)
"""All files that a pack may contain."""


@dataclass(frozen=True, slots=True)
class PackRequest:
    """The contents of a pack and of its card."""

    top_k: int | None = None
    """Experts per concept; None for all that the index has."""
    concepts: tuple[str, ...] = ()
    """Concepts to include; the pack keeps the index's order. Empty for all."""
    title: str | None = None
    license: str | None = None
    """The pack's licence, as an identifier such as ``cc-by-4.0``; only the user knows it."""
    base_model: str | None = None
    """Hub id of the model, if it was mined from a local folder."""
    repository: str | None = None
    """Hub repository to publish in; the card's example loads the pack from there."""

    def __post_init__(self) -> None:
        for name in ("title", "license", "base_model"):
            text = getattr(self, name)
            if text is not None and not (text.strip() and text.isprintable()):
                raise UserError(f"{name} is {text!r}: expected a line of text")


@dataclass(frozen=True, slots=True)
class Packed:
    """A pack that was written."""

    folder: Path
    concepts: int
    top_k: int
    bytes: int
    steered: int
    """Concepts with a number of experts to set."""
    left_out: tuple[str, ...]
    """Concepts without one, because the evaluation chose more experts than the pack has."""
    local_model: str | None
    """The local folder that the pack gives as the name of its model, if it does."""


def pack(experts: Experts, out: Path, request: PackRequest | None = None) -> Packed:
    """Write a pack.

    Args:
        experts: any index, also an existing pack.
        out: a new or empty folder, or an older pack, which is replaced.

    Raises:
        UnknownConcept: a concept is not in the index.
        UserError: k out of range, `out` has other contents, the model of a pack to publish is a local folder, or the
            pack cannot be written.
    """
    request = request or PackRequest()
    k = k_or_all(experts, request.top_k)
    _require_free(out, experts.folder)
    model = request.base_model or experts.model.name
    if request.repository and is_folder(model):
        raise UserError(
            f"these experts were mined from the local folder {model}, which nobody else has; give the model's hub id "
            "with --base-model"
        )
    wanted = set(request.concepts or experts)
    tables: dict[str, pa.Table] = {name: cut(experts, experts.units_table(name), request.concepts, k) for name in UNITS}
    wanted_rows = np.repeat([name in wanted for name in experts], len(experts.metadata["hookpoints"]))
    tables["distribution"] = experts.distribution.filter(pa.array(wanted_rows))
    metadata = {
        **{name: value for name, value in experts.metadata.items() if name not in ("checksums", "top_k")},
        "model": {**experts.metadata["model"], "name": model},
        "concepts": [concept for concept in experts.metadata["concepts"] if concept["name"] in wanted],
        "packed": {
            "expertmine": version("expertmine"),
            "title": request.title,
            "license": request.license,
            "from": {"concepts": len(experts), "top_k": experts.top_k},
        },
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for old in (STEERING, README):
            (out / old).unlink(missing_ok=True)
    write_tables(out, tables, metadata)
    left_out = _write_steering(experts, out, wanted, k)
    made = Experts.load(out)
    load_from = request.repository or out.resolve().name
    write_atomically(out / README, card(made, load_from, request.title, request.license).encode())
    return Packed(
        folder=out,
        concepts=len(made),
        top_k=k,
        bytes=sum((out / name).stat().st_size for name in FILES if (out / name).exists()),
        steered=len(made.steering),
        left_out=left_out,
        local_model=model if is_folder(model) else None,
    )


def _require_free(out: Path, source: Location) -> None:
    """Refuse a location where a pack would overwrite something else.

    Raises:
        UserError: `out` is not a folder, is the source itself, or has contents other than a pack.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} exists and is not a folder; give the pack a folder of its own")
    if same(out, source):
        raise UserError(f"--out is {out}, the index to be packed; give the pack a folder of its own")
    others = sorted(path.name for path in out.iterdir() if path.name not in FILES and not path.name.startswith("."))
    index = out / METADATA
    found = read_json(index, "a pack") if index.exists() else {"packed": None}
    if others or not isinstance(found, dict) or "packed" not in found:
        what = others[0] if others else "an expert index that is not a pack"
        raise UserError(f"{out} contains {what}; give the pack a new folder, or the folder of an older pack")


def _write_steering(experts: Experts, out: Path, wanted: set[str], k: int) -> tuple[str, ...]:
    """Copy the k that an evaluation chose; returns the concepts whose k is larger than the pack's."""
    evaluated = {name: chosen for name, chosen in experts.steering.items() if name in wanted}
    kept = {name: chosen for name, chosen in evaluated.items() if chosen is None or chosen <= k}
    if kept:
        checksum = read_json(out / METADATA, "a pack")["checksums"]["experts"]
        write_json(out / STEERING, {**experts.steering_document, "experts": checksum, "k": kept})
    return tuple(sorted(evaluated.keys() - kept.keys()))
