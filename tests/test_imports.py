"""Who may import whom: read from the source, so that a lazy import counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import expertmine
import expertmine_kernels

PIPELINE = Path(expertmine.__file__).parent
KERNELS = Path(expertmine_kernels.__file__).parent
STAGES = {"extract", "score", "assess", "reduce", "generate"}


def imports(path: Path, at_run_time_only: bool = False) -> set[str]:
    """Every module that a file imports; without those under TYPE_CHECKING when asked."""
    tree = ast.parse(path.read_text())
    if at_run_time_only:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def uses(package: str, found: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for name in found)


MODULES = sorted(PIPELINE.rglob("*.py"))


def test_there_are_modules_to_look_at() -> None:
    assert {path.stem for path in MODULES} >= STAGES | {"store", "corpus", "cli"}


@pytest.mark.parametrize("package, owners", [
    ("zarr", {"store.py"}),
    ("numcodecs", {"store.py"}),
    ("ray", {"runtime/ray.py"}),
    ("dask", {"runtime/dask.py"}),
    ("distributed", {"runtime/dask.py"}),
    ("huggingface_hub", {"hub.py"}),
    ("fastapi", {"serving/app.py"}),
    ("uvicorn", {"serving/server.py"}),
    ("yaml", {"config.py", "show_config.py"}),
    ("expertmine_kernels", {"score.py", "assess.py", "calibrate.py"}),
])  # fmt: skip
def test_a_package_has_one_importer(package: str, owners: set[str]) -> None:
    found = {str(path.relative_to(PIPELINE)) for path in MODULES if uses(package, imports(path))}
    assert found == owners


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_stages_import_neither_each_other_nor_runtimes(stage: str) -> None:
    found = imports(PIPELINE / f"{stage}.py")
    others = {f"expertmine.{other}" for other in STAGES - {stage}} | {"expertmine.runtime", "expertmine.cli.app"}
    assert not [other for other in others if uses(other, found)]


@pytest.mark.parametrize("path", sorted((PIPELINE / "runtime").glob("*.py")), ids=lambda path: path.stem)
def test_runtimes_import_no_stage(path: Path) -> None:
    found = {name for name in imports(path) if name.startswith("expertmine.")}
    own = {name for name in found if uses("expertmine.errors", {name}) or uses("expertmine.runtime", {name})}
    assert found == own


@pytest.mark.parametrize("module, forbidden", [
    ("specs", ["units", "models", "store", "ledger", "corpus"]),
    ("units", ["models", "store", "ledger", "corpus"]),
    ("store", ["ledger", "models", "units", "corpus"]),
    ("corpus", ["models", "units", "store", "ledger"]),
    ("models", ["store", "ledger", "corpus"]),
    ("experts", ["store", "ledger", "models"]),
    ("interventions", ["store", "ledger", "corpus"]),
    ("config", ["cli_config", "cli_options", "specs", "models", "store", "ledger", "corpus"]),
])  # fmt: skip
def test_lower_floors_know_no_upper_ones(module: str, forbidden: list[str]) -> None:
    found = imports(PIPELINE / f"{module}.py")
    assert not [name for name in forbidden if uses(f"expertmine.{name}", found)]


def test_kernels_need_numpy_and_numba_only() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "numba", "expertmine_kernels"}
    for path in KERNELS.rglob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


def test_the_source_roots_are_no_packages() -> None:
    assert not (PIPELINE.parent / "__init__.py").exists()
    assert not (KERNELS.parent / "__init__.py").exists()


@pytest.mark.parametrize("module, absent", [
    ("expertmine.mining.score", ["torch", "transformers", "ray", "distributed"]),
    ("expertmine.index.experts", ["torch", "zarr", "ray", "distributed", "numba", "huggingface_hub"]),
    ("expertmine.steering.interventions", ["zarr", "ray", "distributed", "numba"]),
    ("expertmine.steering.generation", ["zarr", "ray", "distributed", "numba"]),
    ("expertmine.cli.app", ["torch", "ray", "distributed", "matplotlib", "fastapi", "uvicorn", "huggingface_hub"]),
])  # fmt: skip
def test_what_importing_a_module_loads(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
