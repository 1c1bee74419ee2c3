"""Who may import whom: read from the source, so that a lazy import counts too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sources import KERNELS, MODULES, PIPELINE, imports, room_of

ROOMS = (
    "storage",
    "telemetry",
    "runtime",
    "specs",
    "corpus",
    "concepts",
    "model",
    "index",
    "steering",
    "run",
    "mining",
    "evaluate",
    "serving",
    "report",
    "capacity",
    "cli",
    "embedded",
)
"""From the ground up: a room imports only rooms before it in this list."""

LONGEST = 400
"""Lines of a module."""


def uses(package: str, found: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for name in found)


def arrows(path: Path) -> Iterator[str]:
    """The rooms that a module imports from, its own left out."""
    for room in ROOMS:
        if room != room_of(path) and uses(f"expertmine.{room}", imports(path)):
            yield room


def test_every_module_is_in_a_room_of_the_list() -> None:
    assert {room_of(path) for path in MODULES} == {None, *ROOMS}
    beside = {path.name for path in MODULES if room_of(path) is None}
    assert beside == {"__init__.py", "__main__.py", "errors.py", "models.py"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_beneath_it(room: str) -> None:
    above = {
        (str(path.relative_to(PIPELINE)), other)
        for path in MODULES
        if room_of(path) == room
        for other in arrows(path)
        if ROOMS.index(other) > ROOMS.index(room)
    }
    assert above == set()


def test_no_module_is_longer_than_a_reader_bears() -> None:
    lengths = {str(path.relative_to(PIPELINE)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


@pytest.mark.parametrize("package, owners", [
    ("zarr", {"run/store.py"}),
    ("numcodecs", {"run/store.py", "run/shards.py"}),
    ("ray", {"runtime/ray/connection.py", "runtime/ray/hosting.py", "runtime/ray/pool.py"}),
    ("dask", {"runtime/dask/connection.py"}),
    ("distributed", {"runtime/dask/connection.py", "runtime/dask/executor.py"}),
    ("huggingface_hub", {"index/hub.py"}),
    ("fastapi", {"serving/app.py"}),
    ("uvicorn", {"serving/server.py"}),
    ("yaml", {"cli/job_file.py", "cli/show/config.py"}),
    ("expertmine_kernels", {
        "mining/score.py", "mining/assess.py", "mining/scoring_memory.py", "capacity/calibrate.py",
    }),
])  # fmt: skip
def test_a_package_has_one_importer(package: str, owners: set[str]) -> None:
    found = {str(path.relative_to(PIPELINE)) for path in MODULES if uses(package, imports(path))}
    assert found == owners


STAGES = ("extract", "score", "assess", "reduce")


@pytest.mark.parametrize("stage", STAGES)
def test_stages_import_neither_each_other_nor_runtimes(stage: str) -> None:
    found = imports(PIPELINE / "mining" / f"{stage}.py")
    others = {f"expertmine.mining.{other}" for other in (*STAGES, "mine") if other != stage}
    runtimes = {f"expertmine.runtime.{name}" for name in ("serial", "dask", "ray")}
    assert not [other for other in others | runtimes if uses(other, found)]


def test_kernels_need_numpy_and_numba_only() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "numba", "expertmine_kernels"}
    for path in KERNELS.rglob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


def test_the_source_roots_are_no_packages() -> None:
    assert not (PIPELINE.parent / "__init__.py").exists()
    assert not (KERNELS.parent / "__init__.py").exists()


def reached(room: str) -> set[str]:
    """Every module that a room's modules import, and those import in turn, lazily or not."""
    files = {
        ".".join(("expertmine", *path.relative_to(PIPELINE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in MODULES
    }
    waiting = [name for name, path in files.items() if room_of(path) == room]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in imports(files[name]) if other in files]
    return found


@pytest.mark.parametrize("room", ["index", "steering"])
def test_generation_needs_no_store_and_no_cluster(room: str) -> None:
    """Not even through what other rooms import."""
    rooms = {name.split(".")[1] for name in reached(room) if "." in name}
    assert "storage" in rooms and not rooms & {"run", "mining", "concepts"}
    runtimes = {f"expertmine.runtime.{name}" for name in ("serial", "dask", "ray")}
    assert not [each for each in runtimes if uses(each, reached(room))]


CLUSTERS = ["zarr", "ray", "dask", "distributed", "numba"]


@pytest.mark.parametrize("module, absent", [
    ("expertmine.mining.score", ["torch", "transformers", "ray", "distributed"]),
    ("expertmine.index.experts", [*CLUSTERS, "torch", "huggingface_hub", "expertmine.run"]),
    ("expertmine.steering.interventions", [*CLUSTERS, "expertmine.run"]),
    ("expertmine.steering.generation", [*CLUSTERS, "expertmine.run"]),
    ("expertmine.cli.app", [*CLUSTERS, "torch", "numpy", "pyarrow", "matplotlib", "fastapi", "huggingface_hub"]),
])  # fmt: skip
def test_what_importing_a_module_loads(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
