"""Look-ups in an index, against loops over its experts and SciPy's rank correlation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from support.commands import refused, succeed
from support.made_indexes import HOOKPOINTS, make_index

from expertmine.errors import UnknownConcept, UserError
from expertmine.index import lookup
from expertmine.index.experts import Experts
from expertmine.report.overlaps import overlaps

CONCEPTS, KEPT, WIDTH = 30, 24, 25


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Experts:
    rng = np.random.default_rng(0)
    units = np.stack([rng.permutation(WIDTH * len(HOOKPOINTS))[:KEPT] for _ in range(CONCEPTS)])
    units[1] = units[0][::-1]  # the same experts, the other way round
    units[2] = np.setdiff1d(np.arange(WIDTH * len(HOOKPOINTS)), units[0])[:KEPT]  # none of them
    return make_index(tmp_path_factory.mktemp("made"), units, WIDTH)


@pytest.fixture(scope="module")
def folder(experts: Experts) -> Path:
    return experts.folder


@pytest.mark.parametrize("k", [None, 1, 5, KEPT])
def test_the_concepts_of_a_unit_are_those_of_a_loop(k: int | None, experts: Experts) -> None:
    served = 0
    for unit in range(WIDTH * len(HOOKPOINTS)):
        found = lookup.concepts_of(experts, unit, k)
        expected = {
            name: (expert.rank, expert.ap) for name in experts for expert in experts[name].top(k or KEPT)
            if expert.unit == unit
        }  # fmt: skip
        assert {each.concept: (each.rank, each.ap) for each in found} == expected
        assert [each.rank for each in found] == sorted(each.rank for each in found)
        served += len(found)
    assert served == CONCEPTS * (k or KEPT)


@pytest.mark.parametrize("k", [None, 7])
def test_the_units_that_serve_most_are_those_of_a_loop(k: int | None, experts: Experts) -> None:
    found = lookup.most_shared(experts, 1000, k)
    counts: dict[int, list[tuple[int, int]]] = {}
    for at, name in enumerate(experts):
        for expert in experts[name].top(k or KEPT):
            counts.setdefault(expert.unit, []).append((expert.rank, at))
    names = list(experts)
    expected = {
        unit: (len(served), min(served)[0], names[min(served)[1]]) for unit, served in counts.items() if len(served) > 1
    }
    assert {each.unit: (each.concepts, each.best_rank, each.best_concept) for each in found} == expected
    assert [(-each.concepts, each.unit) for each in found] == sorted((-each.concepts, each.unit) for each in found)
    for each in found:
        assert each.best_ap == experts[each.best_concept][each.best_rank - 1].ap
        assert (each.hookpoint, each.channel) == (HOOKPOINTS[each.unit // WIDTH], each.unit % WIDTH)
    assert lookup.most_shared(experts, 3, k) == found[:3]


@pytest.mark.parametrize("pattern, hookpoints", [
    ("model.h.1.in", HOOKPOINTS[2:3]),
    ("model.h.0.*", HOOKPOINTS[:2]),
    ("*.out", HOOKPOINTS[1::2]),
    ("*", HOOKPOINTS),
])  # fmt: skip
def test_experts_at_hookpoints_are_those_of_a_loop(pattern: str, hookpoints: tuple[str, ...], experts: Experts) -> None:
    found = lookup.at_hookpoints(experts, pattern, 9)
    here = {name: [each for each in experts[name].top(9) if each.hookpoint in hookpoints] for name in experts}
    assert found.hookpoints == hookpoints
    assert found.units == WIDTH * len(hookpoints)
    assert found.pairs == sum(map(len, here.values()))
    assert found.expert_units == len({each.unit for own in here.values() for each in own})
    assert found.enrichment == pytest.approx(found.pairs / (9 * CONCEPTS) * len(HOOKPOINTS) / len(hookpoints))
    assert {each.concept: (each.experts, each.best_rank, each.best_unit, each.best_ap) for each in found.concepts} == {
        name: (len(own), own[0].rank, own[0].unit, own[0].ap) for name, own in here.items() if own
    }
    assert [each.experts for each in found.concepts] == sorted((len(own) for own in here.values() if own), reverse=True)


@pytest.mark.parametrize("k", [2, 10, KEPT])
def test_a_comparison_is_that_of_sets_and_of_scipy(k: int, experts: Experts) -> None:
    for other in list(experts)[1:]:
        found = lookup.compare(experts, "concept 0", other, k)
        ranks, other_ranks = (
            {expert.unit: (expert.rank, expert.ap) for expert in experts[name].top(k)} for name in ("concept 0", other)
        )
        common = ranks.keys() & other_ranks.keys()
        assert [(each.rank, each.ap) for each in found.shared] == sorted(ranks[unit] for unit in common)
        assert {each.unit: (each.other_rank, each.other_ap) for each in found.shared} == {
            unit: other_ranks[unit] for unit in common
        }
        assert found.jaccard == len(common) / len(ranks.keys() | other_ranks.keys())
        assert found.expected == k * k / (WIDTH * len(HOOKPOINTS))
        if len(common) < 3:
            assert np.isnan(found.rank_correlation)
        else:
            expected = spearmanr([each.rank for each in found.shared], [each.other_rank for each in found.shared])
            assert found.rank_correlation == pytest.approx(expected.statistic)


def test_the_extremes_of_a_comparison(experts: Experts) -> None:
    assert lookup.compare(experts, "concept 0", "concept 0").rank_correlation == 1
    reverse = lookup.compare(experts, "concept 0", "concept 1")
    assert (reverse.jaccard, reverse.rank_correlation) == (1, -1)
    nothing = lookup.compare(experts, "concept 0", "concept 2")
    assert (nothing.jaccard, nothing.shared) == (0, ())


@pytest.mark.parametrize("k", [None, 1, 8])
def test_overlaps_of_all_pairs_and_the_nearest_are_those_of_comparisons(k: int | None, experts: Experts) -> None:
    names, matrix = overlaps(experts, k)
    assert names == list(experts)
    assert matrix.dtype == np.float64
    for row, name in enumerate(names):
        own = [lookup.compare(experts, name, other, k).jaccard for other in names]
        np.testing.assert_array_equal(matrix[row], own)
        found = lookup.nearest(experts, name, CONCEPTS, k)
        assert {each.concept: each.jaccard for each in found} == {
            other: overlap for other, overlap in zip(names, own, strict=True) if overlap and other != name
        }
        assert [each.jaccard for each in found] == sorted((each.jaccard for each in found), reverse=True)
        assert lookup.nearest(experts, name, 2, k) == found[:2]
    chosen = ["concept 7", "concept 1", "concept 0"]
    some_names, some = overlaps(experts, k, chosen)
    assert some_names == chosen
    np.testing.assert_array_equal(some, matrix[np.ix_([7, 1, 0], [7, 1, 0])])


def test_a_mined_run_answers_too(mined: Path) -> None:
    experts = Experts.load(mined)
    best = experts["animal"][0]
    assert lookup.find_unit(experts, f"{best.hookpoint}:{best.channel}") == lookup.find_unit(experts, str(best.unit))
    assert next(each.rank for each in lookup.concepts_of(experts, best.unit) if each.concept == "animal") == 1
    _, matrix = overlaps(experts, 40)
    assert matrix[0, 1] == lookup.compare(experts, "animal", "tool").jaccard


@pytest.mark.parametrize("text, message", [
    ("100", "no unit 100; expected 0 to 99"),
    ("9" * 5000, "expected 0 to 99"),
    ("model.h.0.in:25", "has no channel '25'; expected 0 to 24"),
    ("model.h.0.in:-1", "has no channel '-1'"),
    ("model.h.0.in:²", "has no channel"),
    ("model.h.0.in", r"is not a unit of 'ann/model'.*did you mean model\.h\.0\.in:0"),
    ("", "is not a unit"),
])  # fmt: skip
def test_units_that_are_not_there_are_refused(text: str, message: str, experts: Experts) -> None:
    with pytest.raises(UserError, match=message):
        lookup.find_unit(experts, text)


def test_what_is_out_of_range_or_unknown_is_refused(experts: Experts) -> None:
    for k in (0, -1, KEPT + 1):
        with pytest.raises(UserError, match=f"k is {k}: expected 1 to {KEPT}"):
            overlaps(experts, k)
    with pytest.raises(UserError, match=r"'model\.h\.2\.\*' matches none of the 4 hookpoints"):
        lookup.at_hookpoints(experts, "model.h.2.*")
    for ask in (
        lambda: lookup.compare(experts, "concept 0", "concept 99"),
        lambda: lookup.nearest(experts, "concept 99", 3),
        lambda: overlaps(experts, 3, ["concept 0", "concept 99"]),
    ):
        with pytest.raises(UnknownConcept, match="no concept 'concept 99'"):
            ask()


def test_the_commands_print_what_the_functions_say(folder: Path, experts: Experts) -> None:
    unit = experts["concept 3"][0].unit
    address = f"{HOOKPOINTS[unit // WIDTH]}:{unit % WIDTH}"
    found = json.loads(succeed("unit", folder, address, "--json"))
    assert found["unit"] == unit
    assert [each["concept"] for each in found["concepts"]] == [
        each.concept for each in lookup.concepts_of(experts, unit)
    ]
    assert "concept 3" in succeed("unit", folder, unit, "-n", 100)
    assert (
        json.loads(succeed("unit", folder, "--json", "-n", 2))[0]["concepts"]
        == lookup.most_shared(experts, 1)[0].concepts
    )
    assert HOOKPOINTS[0] in succeed("hookpoint", folder, "model.h.0.*", "-k", 3)
    assert json.loads(succeed("hookpoint", folder, "*.out", "--json"))["hookpoints"] == list(HOOKPOINTS[1::2])
    assert "share 24 of their 24 best experts (Jaccard 1.000" in succeed("compare", folder, "concept 0", "concept 1")
    assert json.loads(succeed("compare", folder, "concept 0", "concept 2", "--json"))["rank_correlation"] is None
    assert succeed("nearest", folder, "concept 0").splitlines()[1].startswith("concept 1 ")
    assert json.loads(succeed("nearest", folder, "concept 0", "-n", 1, "--json"))["nearest"][0]["jaccard"] == 1
    assert "expected 1 to 24" in refused("compare", folder, "concept 0", "concept 1", "-k", 25)
    assert "did you mean" in refused("nearest", folder, "concept O")
