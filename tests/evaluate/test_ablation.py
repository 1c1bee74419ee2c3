"""Other units in place of a concept's experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.evaluations import SMALL, success

from expertmine import Experts, steer
from expertmine.evaluate import ablation
from expertmine.evaluate.results import (
    Ablation,
    CellResult,
    Variant,
    read_result,
)
from expertmine.evaluate.statistics import sign_flip_p
from expertmine.specs.choices import DEFAULT_K
from expertmine.steering.generation import GenerationRequest, Generator


def test_experts_are_compared_pair_by_pair() -> None:
    variants = [Variant("unsteered", "experts", 0), Variant("experts", "experts", 1), Variant("random", "random", 1)]
    shares = {"a": (0.0, 0.6, 0.1), "b": (0.2, 0.4, 0.4), "c": (0.1, 0.2, 0.3)}
    cells = [
        CellResult(name, 10, variant.name, success(share, 10.0 * (at + 1)))
        for name, row in shares.items()
        for at, (variant, share) in enumerate(zip(variants, row, strict=True))
    ]
    unsteered, experts, random = ablation.compare(cells, variants, seed=0)
    assert (experts.beaten, experts.difference, experts.perplexity_ratio) == (None, None, 2.0)
    assert unsteered.beaten == 1 and random.beaten == pytest.approx(0.5)
    assert random.difference is not None and random.difference.mean == pytest.approx((0.5 + 0 - 0.1) / 3)
    assert random.p_value == sign_flip_p([0.5, 0.0, -0.1])


def test_an_ablation_sets_other_units_of_the_same_concepts(evaluated: Path) -> None:
    found = ablation.evaluate(evaluated, ["metallic_element.n.01", "man.n.01"], 1, 20, SMALL)
    names = [variant.name for variant in found.variants]
    assert names == ["unsteered", "experts", "random", "matched", "block 2", "block 3", "worst"]
    assert [cell.variant for cell in found.cells] == names * 2
    assert [comparison.variant for comparison in found.comparisons] == names
    generator = Generator(evaluated, "cpu")
    index = Experts.load(evaluated)
    others = (("random", 0), ("matched", 0), ("experts", 20), ("experts", 40), ("worst", 0))
    for cell, (units, first) in zip(found.cells[2:7], others, strict=True):
        chosen = index.units("metallic_element.n.01", units)[first : first + 20]  # type: ignore[arg-type]
        by_hand = replace(index["metallic_element.n.01"], experts=tuple(chosen))
        sampled = GenerationRequest(count=4, max_new_tokens=5, seed=2**31)  # not the seed that a k was chosen with
        with steer(generator.loaded.model, by_hand, 20):
            assert tuple(text.strip() for text in generator(sampled)) == cell.success.examples, cell.variant
    assert found == read_result(evaluated, "max", Ablation)
    assert f"{DEFAULT_K} where it chose none" in ablation.evaluate(evaluated, ["man.n.01"], 1, None, SMALL).k_rule


def test_an_ablation_takes_the_concepts_and_the_k_that_were_evaluated(evaluated: Path) -> None:
    Experts.load(evaluated).keep_chosen({"woman.n.01": 7, "metallic_element.n.01": None}, "a rule")
    found = ablation.evaluate(evaluated, (), 2, None, SMALL)
    ks = {(cell.concept, cell.k) for cell in found.cells if cell.variant == "experts"}
    assert ks == {("woman.n.01", 7), ("metallic_element.n.01", DEFAULT_K)}
    assert "(1 of 2 concepts)" in found.k_rule
    (evaluated / "experts" / "steering.json").unlink()
