"""The project's declared dependencies and their own dependencies, read from the environment of the tests."""

from __future__ import annotations

import sysconfig
import tomllib
import venv
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, files, packages_distributions, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.repository import ROOT


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def project() -> dict[str, Any]:
    """Return the project table of pyproject.toml."""
    found: dict[str, Any] = pyproject()["project"]
    return found


@cache
def providers() -> dict[str, frozenset[str]]:
    """Map each top-level module of this environment to the distributions that provide it."""
    return {module: frozenset(map(canonicalize_name, names)) for module, names in packages_distributions().items()}


def declared(extra: str | None = None) -> list[Requirement]:
    """Return the dependencies of the core or of an extra, including those of the project's extras that it names."""
    texts = project()["dependencies"] if extra is None else project()["optional-dependencies"][extra]
    found: list[Requirement] = []
    for requirement in map(Requirement, texts):
        if requirement.name == project()["name"]:
            found += [each for other in sorted(requirement.extras) for each in declared(other)]
        else:
            found.append(requirement)
    return found


def needs(name: str, extras: Iterable[str]) -> list[Requirement]:
    """Return an installed distribution's dependencies for some of its extras; "" stands for no extra."""
    found = map(Requirement, requires(name) or ())
    return [
        each for each in found if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def direct(extra: str | None = None) -> set[str]:
    """Return the declared distributions, including the extras of declared ones."""
    found: set[str] = set()
    for requirement in declared(extra):
        found.add(canonicalize_name(requirement.name))
        brought = needs(requirement.name, requirement.extras) if requirement.extras else []
        found |= {canonicalize_name(each.name) for each in brought if each.marker is not None}
    return found


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """All distributions of this environment that installing these would bring."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        new = {"", *requirement.extras} - {extra for of, extra in seen if of == name}
        if not new:
            continue
        seen |= {(name, extra) for extra in new}
        try:
            waiting += needs(name, new)
        except PackageNotFoundError:  # of another platform, or a build of torch that brings its own
            continue
        found.add(name)
    return found


def make_environment(folder: Path, extra: str | None = None) -> Path:
    """A virtual environment of links to what the core and an extra bring, and to the project's own packages.

    Returns:
        Its Python; give it ``-I``, so that nothing else is looked at.
    """
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    for name in closure([*declared(), *(declared(extra) if extra else ())]):
        for top in {file.parts[0] for file in files(name) or ()} - {"..", "__pycache__"}:
            link(packages / top, Path(sysconfig.get_path("purelib")) / top)
    for package in pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        link(packages / Path(package).name, ROOT / package)
    metadata = packages / f"{project()['name']}-{project()['version']}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.4\nName: {project()['name']}\nVersion: {project()['version']}\n")
    return folder / "bin" / "python"


def link(at: Path, to: Path) -> None:
    if not at.is_symlink():  # several distributions may share a folder
        at.symlink_to(to)
