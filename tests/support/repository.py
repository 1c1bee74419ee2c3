"""Reads files of this repository."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def filled(text: str, values: dict[str, str]) -> str:
    """Replace each placeholder <…> in a file by the value whose name occurs in it."""

    def value(found: re.Match[str]) -> str:
        (fitting,) = (value for name, value in values.items() if name in found[0])
        return fitting

    lines = (line if line.lstrip().startswith("#") else re.sub("<[^<>]+>", value, line) for line in text.splitlines())
    return "\n".join(lines)
