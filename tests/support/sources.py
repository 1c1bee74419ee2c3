"""The package's source: its modules, the room of each, and what each imports."""

from __future__ import annotations

import ast
from pathlib import Path

import expertmine
import expertmine_kernels

PIPELINE = Path(expertmine.__file__).parent
KERNELS = Path(expertmine_kernels.__file__).parent
MODULES = sorted(PIPELINE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module and every name of a module that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str | None:
    """The room that a module is in; None beside the rooms."""
    parts = path.relative_to(PIPELINE).parts
    return parts[0] if len(parts) > 1 else None
