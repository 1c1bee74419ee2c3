"""What the documentation names exists: commands with their options, modules, and files of the repository."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from support.repository import ROOT

from expertmine.cli.app import app

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("deploy/**/*.md")]
)
COMMAND = typer.main.get_command(app)
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)
CALL = re.compile(r"(?:^|[ '\"/])(?<!namespace )(?<!rayjob )(?<!from )expertmine (?=[a-z-])(?P<words>[^#&;'\n]*)")
MODULE = re.compile(r"\bexpertmine(?:_kernels)?(?:\.(?!yaml|sbatch)\w+)+")
FILE = re.compile(r"`((?:tests|docs|deploy|pipeline|kernels|\.github)/[\w./-]+\.\w+)`")
ROOM_FILE = re.compile(r"`((?:[a-z]+/)[a-z_]+\.py)`")


def calls(page: Path) -> Iterator[list[str]]:
    """The words of each command line of a page, in fences and in backticks; continued lines are joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    spans = [line for fence in FENCE.findall(text) for line in fence.splitlines()]
    spans += [" ".join(span.split()) for span in re.findall(r"`(expertmine [^`]+)`", FENCE.sub("", text))]
    for span in spans:
        for call in CALL.finditer(span):
            yield shlex.split(re.sub(r"[][<>]", " ", call["words"]), comments=True)


def unknown(words: list[str]) -> list[str]:
    """The words of a command line that expertmine does not know: a command's name, or an option."""
    command: Any = COMMAND
    options = {"--help", *(name for each in command.params for name in each.opts)}
    missing = []
    for before, word in zip(["", *words], words, strict=False):
        commands = getattr(command, "commands", {})
        if word.startswith("-"):
            known = word.split("=")[0] in options
        elif known := word in commands:
            command = commands[word]
            options |= {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        else:
            known = not commands or before.startswith("-") or word == "…"
        if not known:
            missing.append(word)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    assert {" ".join(words): unknown(words) for words in calls(page) if unknown(words)} == {}


def test_command_lines_are_found_and_faults_too() -> None:
    assert sum(len(list(calls(page))) for page in PAGES) > 50
    assert unknown(["concepts", "wordnett", "--out", "corpus"]) == ["wordnett", "--out"]
    assert unknown(["mine", "run", "--modell", "gpt2"]) == ["--modell"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    package = ROOT / "pipeline" / "expertmine"
    missing = {name for name in MODULE.findall(text) if not _is_there(name)}
    missing |= {name for name in FILE.findall(text) if not (ROOT / name).exists()}
    missing |= {name for name in ROOM_FILE.findall(text) if not ((package / name).exists() or (ROOT / name).exists())}
    assert missing == set()


def _is_there(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False
