"""The names in a run folder are spelled in one module each; read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import expertmine

PIPELINE = Path(expertmine.__file__).parent
FILES = {
    "plan.json": "specs/plan.py",
    "index.json": "index/names.py",
    "steering.json": "index/names.py",
    "store.zarr": "run/paths.py",
}
"""Names that mean nothing else, and who owns them."""
FOLDERS = (
    "assessment", "corpus", "drivers", "evaluation", "experts", "failures", "lock", "null", "receipts", "selection",
    "sentences", "workers",
)  # fmt: skip
"""Words that other modules use too, but not as part of a path."""
TREES = {path.relative_to(PIPELINE).as_posix(): ast.parse(path.read_text()) for path in PIPELINE.rglob("*.py")}


def literals(node: ast.AST) -> Iterator[str]:
    """The strings that an expression is, or begins with."""
    if isinstance(node, ast.JoinedStr) and node.values:
        yield from literals(node.values[0])
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from literals(node.body)
        yield from literals(node.orelse)


def spelled_in(tree: ast.AST) -> set[str]:
    """Every string of a module."""
    return {literal for node in ast.walk(tree) for literal in literals(node)}


def joined_in(tree: ast.AST) -> set[str]:
    """The first folder of every string that a module joins to a path."""
    joins = (node.right for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div))
    return {literal.split("/")[0] for right in joins for literal in literals(right)}


@pytest.mark.parametrize("name, owner", FILES.items())
def test_a_file_is_named_in_one_module(name: str, owner: str) -> None:
    assert {module for module, tree in TREES.items() if name in spelled_in(tree)} == {owner}


@pytest.mark.parametrize("name", FOLDERS)
def test_no_other_module_joins_a_folder_of_a_run_to_a_path(name: str) -> None:
    joining = {
        module
        for module, tree in TREES.items()
        if any(literal == name or literal.startswith(f"{name}-") for literal in joined_in(tree))
    }
    assert joining <= {"run/paths.py", "index/names.py"}


def test_the_check_finds_what_it_should() -> None:
    tree = ast.parse('run / ("experts" if first else f"experts-{pooling}") / f"lock/{term}"; "plan.json"')
    assert joined_in(tree) == {"experts", "experts-", "lock"}
    assert "plan.json" in spelled_in(tree)
