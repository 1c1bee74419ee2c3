"""The names of an expert index's files and folders; every other module takes them from here."""

from __future__ import annotations

from expertmine.specs.settings import Pooling
from expertmine.storage.locations import Location

METADATA = "index.json"
"""Written last: it makes an index whole."""
STEERING = "steering.json"
_FOLDER = "experts"


def index_folder(run: Location, pooling: Pooling | None = None) -> Location:
    """Where a run keeps the index of a pooling; None for its first."""
    return run / (_FOLDER if pooling is None else f"{_FOLDER}-{pooling}")
