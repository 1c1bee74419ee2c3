"""Packs: an expert index cut to what others need, in a folder that says itself what it is.

A pack is an expert index (`expertmine.Experts` opens it, from a folder or from the Hugging Face hub) with a
model card beside it. It holds no sentence and no weight; whose experts they are, a hash of the weights tells.
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
"""All that a pack may hold."""


@dataclass(frozen=True, slots=True)
class PackRequest:
    """What goes into a pack, and what its card says."""

    top_k: int | None = None
    """Experts a concept; None for all that the index holds."""
    concepts: tuple[str, ...] = ()
    """In the index's order whatever this one; none for all."""
    title: str | None = None
    license: str | None = None
    """Of the pack, as an identifier such as ``cc-by-4.0``; the user's to know, as the concepts' sentences are."""
    base_model: str | None = None
    """Hub id under which others find the model, where it was mined from a folder."""
    repository: str | None = None
    """Hub repository that it will be published in; the card's example loads it from there."""

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
    """Concepts for which it says how many experts to set."""
    left_out: tuple[str, ...]
    """Those for which it does not, since evaluation chose more experts than it holds."""
    local_model: str | None
    """The folder of this machine that its model is named by, if it is."""


def pack(experts: Experts, out: Path, request: PackRequest | None = None) -> Packed:
    """Write a pack.

    Args:
        experts: any index; a pack may be packed again, smaller.
        out: a folder, new or empty or of an older pack, which is replaced.

    Raises:
        UnknownConcept: there is none of a name.
        UserError: k out of range, `out` holds something else, what is to be published names a folder of this machine,
            or the disk refuses.
    """
    request = request or PackRequest()
    k = k_or_all(experts, request.top_k)
    _require_place(out, experts.folder)
    model = request.base_model or experts.model.name
    if request.repository and is_folder(model):
        raise UserError(
            f"these experts were mined from the folder {model}, which nobody else has; say by --base-model which model "
            "of the hub it is"
        )
    wanted = set(request.concepts or experts)
    tables: dict[str, pa.Table] = {name: cut(experts, experts.units_table(name), request.concepts, k) for name in UNITS}
    of_wanted = np.repeat([name in wanted for name in experts], len(experts.metadata["hookpoints"]))
    tables["distribution"] = experts.distribution.filter(pa.array(of_wanted))
    metadata = {
        **{name: each for name, each in experts.metadata.items() if name not in ("checksums", "top_k")},
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
    place = request.repository or out.resolve().name
    write_atomically(out / README, card(made, place, request.title, request.license).encode())
    return Packed(
        folder=out,
        concepts=len(made),
        top_k=k,
        bytes=sum((out / name).stat().st_size for name in FILES if (out / name).exists()),
        steered=len(made.steering),
        left_out=left_out,
        local_model=model if is_folder(model) else None,
    )


def _require_place(out: Path, source: Location) -> None:
    """Refuse a place where a pack would harm something.

    Raises:
        UserError: it is no folder, that which is packed, or holds something else than a pack.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is there and is no folder; give the pack a folder of its own")
    if same(out, source):
        raise UserError(f"--out is {out}, which is read; give the pack a folder of its own")
    others = sorted(path.name for path in out.iterdir() if path.name not in FILES and not path.name.startswith("."))
    index = out / METADATA
    found = read_json(index, "a pack") if index.exists() else {"packed": None}
    if others or not isinstance(found, dict) or "packed" not in found:
        what = others[0] if others else "an expert index that is no pack"
        raise UserError(f"{out} holds {what}; give the pack a folder of its own, new or of an older pack")


def _write_steering(experts: Experts, out: Path, wanted: set[str], k: int) -> tuple[str, ...]:
    """Write down which k evaluation chose for the pack's table; returns the concepts whose k is more than it holds."""
    evaluated = {name: chosen for name, chosen in experts.steering.items() if name in wanted}
    kept = {name: chosen for name, chosen in evaluated.items() if chosen is None or chosen <= k}
    if kept:
        checksum = read_json(out / METADATA, "a pack")["checksums"]["experts"]
        write_json(out / STEERING, {**experts.steering_document, "experts": checksum, "k": kept})
    return tuple(sorted(evaluated.keys() - kept.keys()))
