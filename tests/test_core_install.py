"""What `pip install expertmine` alone can do: steer as a library, and look at, export and pack an index."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.distributions import make_environment

from expertmine.cli.extras import EXTRAS

pytestmark = pytest.mark.slow

STEER = """
import sys
from importlib.util import find_spec

import torch
from expertmine import Experts, load_model, steer, steer_rows

run, model = sys.argv[1:]
absent = [name for name in {absent} if find_spec(name) is not None]
assert not absent, absent
loaded = load_model(model)
experts = Experts.load(run)
inputs = loaded.tokenizer("the cat", return_tensors="pt")

def written():
    made = loaded.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    return made[0].tolist()

plain = written()
with steer(loaded.model, experts["animal"], k=30):
    steered = written()
assert len(steered) == len(plain) == inputs["input_ids"].shape[1] + 4
assert written() == plain
assert load_model("embedded").model.num_parameters() > 1_000_000
print("steered")
"""
BROUGHT_BY_OTHERS = {"jinja2", "markupsafe", "pydantic"}
"""Modules of extras that torch and typer bring as well."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("core") / "environment")


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [python, "-I", *map(str, arguments)], capture_output=True, text=True, timeout=300, env=environment
    )


def test_the_library_steers(python: Path, mined: Path, tiny_model: Path) -> None:
    absent = sorted(set().union(*EXTRAS.values()) - BROUGHT_BY_OTHERS)
    done = run(python, "-c", STEER.format(absent=absent), mined, tiny_model)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "steered\n"


@pytest.mark.parametrize("command", [
    ["--help"],
    ["mine", "--help"],
    ["config", "--workers", "2"],
    ["units", "--model", "{model}"],
    ["experts", "{run}"],
    ["experts", "{run}", "animal"],
    ["distribution", "{run}"],
    ["unit", "{run}"],
    ["hookpoint", "{run}", "*"],
    ["compare", "{run}", "animal", "tool"],
    ["nearest", "{run}", "animal"],
    ["export", "{run}", "--format", "csv", "--out", "{out}/table.csv"],
    ["export", "{run}", "--format", "parquet", "--out", "{out}/table.parquet"],
    ["pack", "{run}", "--out", "{out}/pack"],
    ["generate", "{run}", "--concept", "animal", "-k", "5", "-n", "1", "--max-new-tokens", "4"],
    ["concepts", "show", "{corpus}"],
], ids=" ".join)  # fmt: skip
def test_commands_that_need_the_core_alone(
    command: list[str], python: Path, mined: Path, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    arguments = [word.format(run=mined, model=tiny_model, corpus=tiny_corpus, out=tmp_path) for word in command]
    done = run(python, "-m", "expertmine", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command, extra", [
    (["mine", "run", "--corpus", "corpus"], "mine"),
    (["demo", "--out", "run"], "mine"),
    (["status", "{run}"], "mine"),
    (["estimate", "--sentences", "9", "--concepts", "2", "--cluster", "cpus=2"], "mine"),
    (["export", "{run}", "--format", "selfcond", "--out", "out"], "mine"),
    (["generate", "{run}", "--concept", "animal", "--executor", "ray"], "mine"),
    (["evaluate", "concept", "{run}", "--concept", "animal"], "evaluate"),
    (["report", "{run}"], "report"),
    (["serve", "{run}"], "serve"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else value)  # fmt: skip
def test_other_commands_say_which_extra_they_need(command: list[str], extra: str, python: Path, mined: Path) -> None:
    done = run(python, "-m", "expertmine", *(word.format(run=mined) for word in command))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"expertmine: `expertmine {command[0]}` needs packages that are not installed (")
    assert line.endswith(f"): pip install 'expertmine[{extra}]'")


def test_a_report_needs_its_extra_alone(mined: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", "report")
    own = shutil.copytree(mined, tmp_path / "run")
    done = run(python, "-m", "expertmine", "report", own, "--out", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
