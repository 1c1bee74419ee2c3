"""The names of an expert index's files and folders; every other module takes them from here."""

from __future__ import annotations

from expertmine.specs.settings import Pooling
from expertmine.storage.locations import Location

METADATA = "index.json"
"""Written last; an index is complete once it exists."""
STEERING = "steering.json"
_FOLDER = "experts"


def index_folder(run: Location, pooling: Pooling | None = None) -> Location:
    """The folder of a run's index for one pooling; None for the first pooling."""
    return run / (_FOLDER if pooling is None else f"{_FOLDER}-{pooling}")
