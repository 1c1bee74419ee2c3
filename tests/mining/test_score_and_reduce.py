"""Stages 2 and 3 against scikit-learn and NumPy on the stored values."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from support.corpora import LabelledTexts, write_lists
from support.plans import plan_new

from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.mining import ranking
from expertmine.mining.mine import run_all, run_reduce
from expertmine.mining.ranking import Extremes
from expertmine.run.open_run import OpenRun, open_corpus, open_run
from expertmine.run.statistics import STATISTICS
from expertmine.run.store import Store
from expertmine.runtime.cluster import Cluster


@pytest.fixture(scope="module")
def truth(mined: Path) -> dict[str, np.ndarray]:
    """Every statistic of every (concept, unit), from the stored responses and the corpus."""
    plan = open_run(mined).plan
    corpus = open_corpus(open_run(mined))
    responses = Store(open_run(mined)).read_responses("max", range(plan.layout.units)).astype(np.float64)
    found: dict[str, list[np.ndarray]] = {name: [] for name in STATISTICS}
    for concept in corpus.concepts:
        rows = corpus.rows(concept.concept_id)
        sides = {}
        for held_out in (False, True):
            on, off = (side[corpus.held_out[side] == held_out] for side in (rows.positives, rows.negatives))
            sides[held_out] = (np.concatenate([on, off]), np.repeat([1, 0], [len(on), len(off)]), on, off)
        both, labels, on, off = sides[False]
        seen = [responses[both, unit] for unit in range(plan.layout.units)]
        found["ap"].append(np.array([average_precision_score(labels, values) for values in seen]))
        found["auroc"].append(np.array([roc_auc_score(labels, values) for values in seen]))
        found["on_mean"].append(responses[on].mean(0))
        found["on_p50"].append(np.percentile(responses[on], 50, axis=0))
        found["on_p90"].append(np.percentile(responses[on], 90, axis=0))
        found["off_mean"].append(responses[off].mean(0))
        both, labels, _, _ = sides[True]
        found["held_out_ap"].append(
            np.array([average_precision_score(labels, responses[both, unit]) for unit in range(plan.layout.units)])
        )
    return {name: np.stack(rows) for name, rows in found.items()}


@pytest.mark.parametrize(
    "name, tolerance", [(name, 1e-12 if dtype == "float64" else 1e-6) for name, dtype in STATISTICS.items()]
)
def test_scores_are_those_of_the_oracles_on_the_stored_values(
    name: str, tolerance: float, mined: Path, truth: dict[str, np.ndarray]
) -> None:
    plan = open_run(mined).plan
    scores = Store(open_run(mined)).read_scores("max", name, range(plan.layout.units))
    np.testing.assert_allclose(scores, truth[name], rtol=tolerance, atol=tolerance)


def test_the_index_holds_the_best_units_in_order(mined: Path, truth: dict[str, np.ndarray]) -> None:
    plan = open_run(mined).plan
    ap = Store(open_run(mined)).read_scores("max", "ap", range(plan.layout.units))
    experts = Experts.load(mined)
    for at, name in enumerate(experts):
        expected = sorted(range(plan.layout.units), key=lambda unit: (-ap[at, unit], unit))[:40]
        assert [expert.unit for expert in experts[name]] == expected
        assert [expert.rank for expert in experts[name]] == list(range(1, 41))
        for expert in experts[name]:
            (hookpoint,) = [hookpoint for hookpoint in plan.hookpoints if expert.unit in hookpoint.units]
            assert (expert.hookpoint, expert.channel) == (hookpoint.name, expert.unit - hookpoint.first_unit)
            assert expert.ap == ap[at, expert.unit]
            assert expert.on_mean == np.float32(truth["on_mean"][at, expert.unit])


def test_reducing_again_writes_the_same_bytes_and_top_k_is_checked(mined: Path) -> None:
    before = (mined / "experts" / "experts.parquet").read_bytes()
    run_reduce(mined, 40)
    assert (mined / "experts" / "experts.parquet").read_bytes() == before
    for k in (0, 10**6):
        with pytest.raises(UserError, match=f"--top-k is {k}"):
            run_reduce(mined, k)


@given(
    ap=st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.9]), min_size=1, max_size=24),
    cuts=st.lists(st.integers(0, 24), max_size=4),
    k=st.integers(1, 30),
    worst=st.booleans(),
    order=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_the_best_do_not_depend_on_how_or_in_which_order_blocks_come(
    ap: list[float], cuts: list[int], k: int, worst: bool, order: random.Random
) -> None:
    values = np.array([ap, ap[::-1]])
    blocks = list(itertools.pairwise(sorted({0, len(ap), *(min(cut, len(ap)) for cut in cuts)})))
    order.shuffle(blocks)
    extremes = Extremes(2, k, worst)
    with mock.patch.object(ranking, "_SPARE", 5):  # sift often
        for start, stop in blocks:
            extremes.add(values[:, start:stop], start)
        units, found = extremes.found()
    for row in range(2):
        sign = 1 if worst else -1
        expected = sorted(range(len(ap)), key=lambda unit: (sign * values[row, unit], unit))[:k]
        assert units[row].tolist() == expected
        assert found[row].tolist() == values[row, expected].tolist()


def test_a_shared_pool_scores_as_the_same_negatives_listed(tmp_path: Path, tiny_model: Path) -> None:
    """Bit for bit: what is stored once for many concepts means what it would mean written out for each."""
    noun = ["cat", "dog", "saw", "drill", "raven", "rake", "trout", "lathe", "wolf", "clamp"]
    texts = [f"the {word} number {at}" for at, word in enumerate(noun * 4)]
    rng = np.random.default_rng(0)
    everything = set(texts)
    pools = [sorted(rng.choice(texts, 25, replace=False).tolist()), texts]
    shared, listed = [], []
    for at in range(6):
        on, neither = set(rng.choice(texts, 8, replace=False)), set(rng.choice(texts, 4, replace=False))
        pool = at % 2
        extra = sorted(everything - on - neither)[:3] if at == 2 else []
        off = sorted((set(pools[pool]) | set(extra)) - on - neither)
        shared.append(LabelledTexts(f"c{at}", "", "", sorted(on), extra, pool, sorted(neither)))
        listed.append(LabelledTexts(f"c{at}", "", "", sorted(on), off))
    scores = []
    for name, concepts in (("shared", shared), ("listed", listed)):
        write_lists(concepts, tmp_path / f"{name} corpus", held_out_percent=0, pools=pools)
        run = tmp_path / name
        plan, _ = plan_new(run, tiny_model, tmp_path / f"{name} corpus")
        run_all(run, ("serial", Cluster()), ("serial", Cluster()), top_k=20)
        store = Store(OpenRun(run, plan))
        scores.append({name: store.read_scores("max", name, range(plan.layout.units)) for name in STATISTICS})
        index = {c["name"]: (c["positives"], c["negatives"]) for c in Experts.load(run).metadata["concepts"]}
        assert index == {c.name: (len(c.positives), len(c.negatives)) for c in listed}
    for name in STATISTICS:
        np.testing.assert_array_equal(scores[0][name], scores[1][name], err_msg=name)
