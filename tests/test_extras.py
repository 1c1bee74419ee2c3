"""The core and its extras: each room imports only what they bring, and a command says which one it lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from packaging.utils import canonicalize_name
from support.distributions import declared, direct, make_environment, project, providers
from support.sources import KERNELS, MODULES, PIPELINE, imports, room_of

from expertmine.cli.extras import EXTRAS, Commands, lacking

EXTRA_OF = {
    "runtime": "mine",
    "run": "mine",
    "mining": "mine",
    "capacity": "mine",
    "evaluate": "evaluate",
    "serving": "serve",
    "report": "report",
}
"""The extra that a room may use; the others have the core alone."""
WHERE_INSTALLED = {"telemetry/metrics.py": "mine", "model/load.py": "split"}
"""Modules of the core that use an extra's package if it is there."""
WITH_TORCH = {"triton"}
"""Packages that PyTorch's builds for GPUs bring; modules ask whether they are there."""
CORE_ALONE = (
    "runtime.cluster", "runtime.events", "runtime.executors", "runtime.outcomes", "runtime.protocol", "runtime.serial",
    "runtime.workers", "run.paths", "serving.offline",
)  # fmt: skip
"""Modules of other rooms that the core's commands load."""


def third_party(path: Path) -> set[str]:
    tops = {name.partition(".")[0] for name in imports(path)}
    return tops - set(sys.stdlib_module_names) - WITH_TORCH - {"expertmine", "expertmine_kernels"}


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(PIPELINE))) for path in MODULES])
def test_a_module_imports_what_its_room_declares(path: Path) -> None:
    extra = WHERE_INSTALLED.get(str(path.relative_to(PIPELINE)), EXTRA_OF.get(room_of(path) or ""))
    allowed = direct() | (set() if extra is None else direct(extra))
    assert {module for module in third_party(path) if not providers()[module] & allowed} == set()


def test_kernels_import_what_mining_declares() -> None:
    allowed = direct() | direct("mine")
    for path in KERNELS.rglob("*.py"):
        assert all(providers()[module] & allowed for module in third_party(path)), path


def test_commands_know_the_packages_of_every_extra() -> None:
    extras = project()["optional-dependencies"].keys() - {"all", "dev"}
    assert EXTRAS.keys() == extras
    for extra in extras:
        assert all(providers()[module] & direct(extra) for module in EXTRAS[extra])
        known = set().union(*(providers()[module] for module in EXTRAS[extra]))
        assert {canonicalize_name(each.name) for each in declared(extra)} <= known


def test_all_is_every_extra_and_dev_has_them() -> None:
    every = {str(each) for extra in EXTRAS for each in declared(extra)}
    assert {str(each) for each in declared("all")} == every
    assert {str(each) for each in declared("dev")} > every


@pytest.mark.slow
@pytest.mark.parametrize("extra", [None, *sorted(set(EXTRA_OF.values()))])
def test_rooms_import_with_their_extra_alone(extra: str | None, tmp_path: Path) -> None:
    """Through other rooms, too: nothing is there but what the core and the extra bring."""
    names = [
        ".".join(("expertmine", *path.relative_to(PIPELINE).with_suffix("").parts)).removesuffix(".__init__")
        for path in MODULES
        if EXTRA_OF.get(room_of(path) or "") == extra and path.stem != "__main__"
    ]
    if extra is None:
        names = [name for name in names if name != "expertmine.cli.demo"]  # mines
        names += [f"expertmine.{name}" for name in CORE_ALONE]
    if extra == "evaluate":
        names.append("expertmine.report.evaluation_figures")
    python = make_environment(tmp_path / "environment", extra)
    code = f"from importlib import import_module\nfor name in {names}: import_module(name)"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments, missing, extra", [
    (["mine", "run", "--corpus", "c"], ["zarr"], "mine"),
    (["export", "run", "--format", "selfcond", "--out", "o"], ["numcodecs", "zarr"], "mine"),
    (["report", "run"], ["zarr"], "report"),
    (["evaluate", "concept", "run"], ["sklearn"], "evaluate"),
    (["serve", "run"], ["fastapi"], "serve"),
])  # fmt: skip
def test_a_command_says_what_it_lacks(arguments: list[str], missing: list[str], extra: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r})); sys.argv[0] = 'expertmine'\n"
        "from expertmine.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"expertmine: `expertmine {arguments[0]}` needs packages that are not installed ({', '.join(missing)}): "
        f"pip install 'expertmine[{extra}]'\n"
    )


def test_other_missing_modules_are_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        lacking("mine", ModuleNotFoundError("No module named 'expertmine.nowhere'", name="expertmine.nowhere")) is None
    )
    assert lacking("mine", ModuleNotFoundError("no name")) is None
    assert lacking("mine", ModuleNotFoundError("zarr is there, this part of it is not", name="zarr.nowhere")) is None
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    app.callback()(lambda: None)

    @app.command()
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")

    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        app(["broken"])
