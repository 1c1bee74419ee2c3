"""`expertmine evaluate`, and bad requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import refused, succeed

from expertmine.errors import UserError
from expertmine.evaluate import concept, parity
from expertmine.evaluate.contexts import read_occupations


def test_bad_requests_are_refused_before_anything_is_generated(mined: Path, evaluated: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="k is 99: expected 0 to 60"):
        concept.evaluate(evaluated, ["man.n.01"], 1, ladder=(0, 99))
    with pytest.raises(UserError, match="no concept 'animal'"):
        concept.evaluate(evaluated, ["animal"], 1, (5,))
    with pytest.raises(UserError, match=r"no concept has 10 held-out positives"):
        concept.evaluate(mined, (), 1, (5,))
    with pytest.raises(UserError, match=r"no concept 'man\.n\.01'.*mine it, or name other"):
        parity.evaluate(mined)
    with pytest.raises(UserError, match="no k above 0 is given"):
        parity.evaluate(evaluated, ladder=(0,))
    (tmp_path / "none.txt").write_text("# nothing\n\n")
    with pytest.raises(UserError, match="has no occupations"):
        read_occupations(tmp_path / "none.txt")


def test_the_commands_print_write_and_draw(evaluated: Path, tmp_path: Path) -> None:
    small = ("-n", 3, "--max-new-tokens", 4)
    printed = succeed("evaluate", "concept", evaluated, "--concept", "metallic_element.n.01", "-k", 5, *small)
    assert "k = 5" in printed and "metallic_element.n.01" in printed and "figure: " in printed
    figure = evaluated / "evaluation" / "max" / "concept.svg"
    assert figure.read_text().lstrip().startswith("<?xml")
    found = json.loads(succeed("evaluate", "ablation", evaluated, "--count", 2, "-k", 20, *small, "--json"))
    assert {each["variant"] for each in found["comparisons"]} >= {"experts", "random", "matched", "worst"}
    occupations = tmp_path / "occupations.txt"
    occupations.write_text("nurse\ndoctor\n")
    arguments = ("--occupations", occupations, "--contexts", 3, "-k", 5, *small, "--figure", tmp_path / "parity.png")
    printed = succeed("evaluate", "parity", evaluated, *arguments)
    assert "exact" in printed and "sampled" in printed
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
    assert "--estimate is 'guessed'" in refused("evaluate", "parity", evaluated, "--estimate", "guessed")
    assert "--executor is 'dask'" in refused("evaluate", "concept", evaluated, "--executor", "dask")
