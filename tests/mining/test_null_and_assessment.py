"""Is it real: shuffled labels, resampled sentences and distributions of a run, against scikit-learn and by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from support.corpora import LabelledTexts, write_lists
from support.plans import plan_new, request

from expertmine.corpus.draws import salted_number
from expertmine.corpus.reader import Corpus
from expertmine.errors import StageError, UserError
from expertmine.index.distribution import BINS, EDGES, grouped, layer_of
from expertmine.index.experts import Experts
from expertmine.mining import assess
from expertmine.mining.chance import expected_ap
from expertmine.mining.growth import plan_run
from expertmine.mining.mine import run_all, run_reduce, run_score
from expertmine.mining.planning import make_plan
from expertmine.mining.reduce import stability
from expertmine.mining.score import Scorer
from expertmine.mining.scored_rows import LabelSplit, ScoredRows, mined_and_held_out, null_classes, scored_rows
from expertmine.mining.scoring_memory import MemoryBudget
from expertmine.run.inspection import progress_of, verify
from expertmine.run.open_run import open_corpus, open_run
from expertmine.run.side_tables import read_null, read_selection, write_selection
from expertmine.run.statistics import STATISTICS
from expertmine.run.store import Store
from expertmine.runtime.cluster import Cluster
from expertmine.specs.settings import ScoringSpec
from expertmine_kernels import draw_with_replacement

SERIAL = ("serial", Cluster())


def opened(run: Path) -> tuple[Corpus, LabelSplit, LabelSplit, ScoredRows, np.ndarray]:
    """A run's corpus, its two sides, its sets of labels, and all responses (rows, units)."""
    plan = open_run(run).plan
    corpus, store = open_corpus(open_run(run)), Store(open_run(run))
    mined, held_out, rows_of = mined_and_held_out(open_run(run), corpus, store)
    responses = store.read_responses(plan.responses.poolings[0], range(plan.layout.units)).astype(np.float64)
    return corpus, mined, held_out, scored_rows(mined, held_out, rows_of, plan.scoring), responses


def test_shuffled_labels_are_other_labels_of_the_same_sentences(mined: Path) -> None:
    corpus, side, _, scored, _ = opened(mined)
    rows_of = scored.sets.rows_of
    shuffles = range(scored.mined + len(scored.held_out), len(scored.sets.positives))
    assert len(shuffles) == len(scored.shuffled) == 20
    seen = set()
    for at, concept_id in zip(shuffles, scored.shuffled.tolist(), strict=True):
        own = corpus.rows(concept_id)
        of_the_concept = [ids[side.usable[ids]] for ids in (own.positives, own.negatives)]
        positives = set(scored.sets.positives[at].tolist())
        pool, removed = scored.sets.pools[scored.sets.pool_of[at]], scored.sets.removed[at]
        assert len(positives) == len(of_the_concept[0])
        negatives = set(pool.tolist()) - set(removed.tolist())
        assert not positives & negatives
        assert positives | negatives == set(rows_of[np.concatenate(of_the_concept)].tolist())
        seen.add(frozenset(positives))
    assert len(seen) == 20
    assert frozenset(rows_of[of_the_concept[0]].tolist()) not in seen


def test_the_null_is_the_best_of_all_units_under_each_shuffle(mined: Path) -> None:
    _, _, _, scored, responses = opened(mined)
    _, max_ap = read_null(open_run(mined), "max")
    first = scored.mined + len(scored.held_out)
    for at in (0, 7, 19):
        on, pool = scored.sets.positives[first + at], scored.sets.pools[scored.sets.pool_of[first + at]]
        off = np.setdiff1d(pool, scored.sets.removed[first + at])
        rows, labels = np.concatenate([on, off]), np.repeat([1, 0], [len(on), len(off)])
        units = range(responses.shape[1])
        assert max_ap[at] == pytest.approx(
            max(average_precision_score(labels, responses[rows, unit]) for unit in units), abs=1e-12
        )


def test_the_index_tells_chance(mined: Path) -> None:
    corpus, side, _, _, _ = opened(mined)
    plan = open_run(mined).plan
    shuffled, max_ap = read_null(open_run(mined), "max")
    expected = expected_ap(side.positives, side.negatives)
    assert (side.positives == side.positives[0]).all() and (side.negatives == side.negatives[0]).all()  # one class
    index = Experts.load(mined)
    ap = Store(open_run(mined)).read_scores("max", "ap", range(plan.layout.units))
    for concept in corpus.concepts:
        at, metadata = concept.concept_id, index.concept_metadata(concept.name)
        chance = metadata["chance"]
        assert chance["expected_ap"] == pytest.approx(expected[at])
        assert chance["threshold"] == max_ap.max()  # one in 21 may be above
        assert chance["labels_of"] == corpus.concepts[shuffled[0]].name
        assert chance["units_above"] == (ap[at] > chance["threshold"]).sum()
        for expert in index[concept.name]:
            assert expert.p_value == pytest.approx((1 + (max_ap >= expert.ap).sum()) / 21)
    assert index.metadata["scoring"] == {
        "keep": None, "permutations": 20, "null": "shared", "resamples": 100, "seed": 0, "alpha": 0.05
    }  # fmt: skip


def test_classes_share_the_labels_of_their_smallest() -> None:
    positives, negatives = np.array([300, 100, 110, 105, 100]), np.array([1000, 1000, 1010, 200, 990])
    own = null_classes(positives, negatives, "own")
    assert own.shuffled.tolist() == [0, 1, 2, 3, 4]
    assert (own.positives == positives).all() and (own.negatives == negatives).all()
    shared = null_classes(positives, negatives, "shared")
    assert shared.shuffled.tolist() == [0, 4, 4, 3, 4]
    assert shared.positives.tolist() == [300, 100, 100, 105, 100]
    assert shared.negatives.tolist() == [1000, 990, 990, 200, 990]


@given(sizes=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=30))
def test_nobody_is_measured_by_a_larger_concept_or_by_a_much_smaller_one(sizes: list[tuple[int, int]]) -> None:
    positives, negatives = np.array(sizes).T
    classes = null_classes(positives, negatives, "shared")
    for own, fewest in ((positives, classes.positives), (negatives, classes.negatives)):
        assert (fewest <= own).all() and (own < 1.5 * fewest + 1e-9).all()
    assert (positives[classes.shuffled] == classes.positives).all()
    assert (negatives[classes.shuffled] >= classes.negatives).all()
    assert (classes.shuffled[classes.shuffled] == classes.shuffled).all()


def test_shuffles_have_the_fewest_negatives_of_the_class(tmp_path: Path, tiny_model: Path) -> None:
    texts = [f"the {word} number {at}" for at, word in enumerate(["cat", "dog", "saw", "drill"] * 14)]
    concepts = [
        LabelledTexts("few positives", "", "", texts[:12], texts[12:45]),
        LabelledTexts("few negatives", "", "", texts[30:45], texts[:28]),
    ]
    write_lists(concepts, tmp_path / "corpus", held_out_percent=0)
    run = tmp_path / "run"
    plan_new(run, tiny_model, tmp_path / "corpus")
    run_all(run, SERIAL, SERIAL, top_k=5)  # type: ignore[arg-type]
    _, side, _, scored, _ = opened(run)
    assert set(scored.shuffled.tolist()) == {1} and len(scored.shuffled) == 20  # "few positives", by name the second
    for at in range(scored.mined, len(scored.sets.positives)):
        pool, removed = scored.sets.pools[scored.sets.pool_of[at]], scored.sets.removed[at]
        assert (len(scored.sets.positives[at]), len(pool) - len(removed)) == (12, 28)
        of_concept = np.concatenate([side.positives_of(1), side.negatives_of(1)])
        assert set(pool.tolist()) < set(scored.sets.rows_of[of_concept].tolist())
    metadata = Experts.load(run).concept_metadata("few negatives")
    assert (metadata["positives"], metadata["negatives"]) == (15, 28)
    assert metadata["chance"]["labels_of"] == "few positives"
    assert metadata["chance"]["threshold"] > metadata["chance"]["expected_ap"]


@pytest.mark.slow
def test_an_experts_interval_and_its_concepts_stability_by_hand(mined: Path) -> None:
    corpus, side, held_out, scored, responses = opened(mined)
    index, units = Experts.load(mined), read_selection(open_run(mined), "max")
    assert units.shape == (2, 100)
    name, concept_id = "tool", corpus.concept("tool").concept_id
    ap: dict[str, np.ndarray] = {}
    for salt, chosen in (("mined", side), ("held out", held_out)):
        rows, counts = [], []
        for kind, ids in (
            ("positives", chosen.positives_of(concept_id)),
            ("negatives", chosen.negatives_of(concept_id)),
        ):
            rows.append(scored.sets.rows_of[ids])
            counts.append(draw_with_replacement(len(ids), 100, salted_number(f"{kind} {salt} 0 {name}")))
        labels = np.repeat([1, 0], [len(rows[0]), len(rows[1])])
        weights, both = np.concatenate(counts), np.concatenate(rows)
        ap[salt] = np.array(
            [
                [
                    average_precision_score(
                        labels[w > 0], responses[both, unit][w > 0], sample_weight=w[w > 0].astype(float)
                    )
                    for w in weights.T
                ]
                for unit in units[concept_id]
            ]
        )
    for expert, resampled in zip(index[name], ap["held out"], strict=False):
        assert [expert.held_out_low, expert.held_out_high] == pytest.approx(np.percentile(resampled, [2.5, 97.5]))
        assert expert.held_out_low <= expert.held_out_high
    shares = []
    for resample in range(100):
        order = sorted(range(100), key=lambda place: (-np.float32(ap["mined"][place, resample]), place))
        shares.append(len(set(order[:10]) & set(range(10))) / 10)
    assert index.concept_metadata(name)["stability"]["10"] == pytest.approx(np.mean(shares))


def test_stability_of_what_never_or_always_changes() -> None:
    same = np.linspace(1, 0, 20)[:, np.newaxis].repeat(5, axis=1)
    assert stability(same, 10) == 1
    assert stability(same[::-1], 10) == 0
    assert stability(np.full((20, 3), 0.5), 10) == 1  # ties go to the better one


def test_of_very_many_negatives_each_resample_has_all(mined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, side, _, _, _ = opened(mined)
    on, off = len(side.positives_of(0)), len(side.negatives_of(0))
    assessor = assess.Assessor(open_run(mined))
    rows = []
    monkeypatch.setattr(assess, "resampled_average_precision", lambda *given: rows.append(len(given[2])))
    for most in (off, off - 1):
        monkeypatch.setattr(assess, "MAX_NEGATIVES", most)
        assessor.resample(side, np.zeros((72, 1), np.float16), 0, np.array([0]), "mined")
    assert rows == [on + off, on]


def test_the_distribution_counts_every_pair(mined: Path) -> None:
    plan, index = open_run(mined).plan, Experts.load(mined)
    ap = Store(open_run(mined)).read_scores("max", "ap", range(plan.layout.units))
    rows = {(row["concept"], row["hookpoint"]): row for row in index.distribution.to_pylist()}
    for at, name in enumerate(index):
        threshold = index.concept_metadata(name)["chance"]["threshold"]
        for hookpoint in plan.hookpoints:
            own, row = ap[at, hookpoint.first_unit : hookpoint.units.stop], rows[name, hookpoint.name]
            ends = [*EDGES[1:-1], 2]
            expected = [((own >= low) & (own < high)).sum() for low, high in zip(EDGES[:-1], ends, strict=True)]
            assert row["bins"] == expected and sum(row["bins"]) == row["units"] == hookpoint.width
            assert row["max_ap"] == own.max() and row["mean_ap"] == pytest.approx(own.mean())
            assert row["above_chance"] == (own > threshold).sum()
            assert row["layer"] == int(hookpoint.name.split(".")[2])
    for concept, by, groups in ((None, "layer", 2), ("tool", "kind", 4), ("tool", "hookpoint", 8)):
        found = grouped(index.distribution, concept, by)  # type: ignore[arg-type]
        assert len(found) == groups
        kept = ap if concept is None else ap[[list(index).index(concept)]]
        assert sum(group.pairs for group in found) == kept.size
        assert np.sum([group.bins for group in found]) == kept.size
        assert sum(group.at_least["0.5"] for group in found) == (kept >= 0.5).sum()
        assert max(group.max_ap for group in found) == kept.max()
    assert BINS == 20


@pytest.mark.parametrize("name, layer", [
    ("transformer.h.11.mlp.c_fc", 11), ("model.layers.3.block_sparse_moe.experts.w1[5]", 3), ("lm_head", None),
    ("encoder.layer.0", 0), ("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn#2", 0), ("h2.proj", None),
])  # fmt: skip
def test_the_layer_of_a_hookpoint(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_the_worst_units_are_the_other_end(mined: Path) -> None:
    plan, index = open_run(mined).plan, Experts.load(mined)
    store = Store(open_run(mined))
    found = {name: store.read_scores("max", name, range(plan.layout.units)) for name in STATISTICS}
    worst = index.worst.to_pylist()
    for at, name in enumerate(index):
        rows = [row for row in worst if row["concept"] == name]
        expected = sorted(range(plan.layout.units), key=lambda unit: (found["ap"][at, unit], unit))[:40]
        assert [row["unit"] for row in rows] == expected
        for row in rows:
            for statistic in ("ap", "auroc", "on_mean", "held_out_ap"):
                assert row[statistic] == found[statistic][at, row["unit"]]


def new_scores(mined: Path, to: Path, **scoring: object) -> Path:
    """The same responses, scored otherwise."""
    run = Path(shutil.copytree(mined, to))
    plan = open_run(run).plan
    asked = request(Path(plan.model.name), scoring=dict(scoring))
    _, bill = plan_run(run, open_corpus(open_run(run)), asked, force=False)
    assert bill is not None and bill.sentences == 0
    run_all(run, SERIAL, SERIAL, top_k=4)  # type: ignore[arg-type]
    return run


def test_scoring_can_be_asked_for_otherwise_without_a_model(mined: Path, tmp_path: Path) -> None:
    run = new_scores(mined, tmp_path / "run", permutations=0, resamples=0)
    before = {path.name: path.stat().st_mtime_ns for path in (mined / "receipts" / "extract").iterdir()}
    assert {path.name: path.stat().st_mtime_ns for path in (run / "receipts" / "extract").iterdir()} == before
    index = Experts.load(run)
    assert [stage.stage for stage in progress_of(run)] == ["extract", "score", "reduce"]
    (chance,) = {json.dumps(index.concept_metadata(name)["chance"]["threshold"]) for name in index}
    assert chance == "null"
    assert np.isnan([expert.p_value for expert in index["tool"]]).all()
    assert np.isnan([expert.held_out_low for expert in index["tool"]]).all()
    assert index["tool"][0].held_out_ap > 0
    assert index.concept_metadata("tool")["stability"] == {}
    assert [group.above_chance for group in grouped(index.distribution, "tool", "layer")] == [None, None]
    # What is not said stays as it was planned.
    plan = open_run(run).plan
    assert plan_run(run, open_corpus(open_run(run)), request(Path(plan.model.name)), force=False)[1] is None


def test_what_is_kept_of_some_units_is_what_all_have(mined: Path, tmp_path: Path) -> None:
    run = new_scores(mined, tmp_path / "run", keep=5)
    plan = open_run(run).plan
    assert plan.kept_columns == 10
    ours, theirs = Experts.load(run), Experts.load(mined)
    for name in ours:
        assert [str(expert) for expert in ours[name]] == [str(expert) for expert in theirs[name].top(4)]
    for at in (0, 4):
        assert str(ours.worst.slice(at, 4).to_pylist()) == str(theirs.worst.slice(at * 10, 4).to_pylist())
    assert ours.distribution.equals(theirs.distribution)
    with pytest.raises(UserError, match="--top-k is 6: expected 1 to 5, as many as have their statistics kept"):
        run_reduce(run, 6)
    shapes = {name: Store(open_run(run)).read_kept("max", name, 0).shape for name in STATISTICS.keys() - {"ap"}}
    assert set(shapes.values()) == {(2, 10)}
    assert all(damage is None for damage in verify(run))


def test_all_labels_of_all_concepts_may_be_shuffled(mined: Path, tmp_path: Path) -> None:
    run = new_scores(mined, tmp_path / "run", null="own", permutations=3, seed=5)
    shuffled, max_ap = read_null(open_run(run), "max")
    assert shuffled.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(set(max_ap.tolist())) > 3
    metadata = Experts.load(run).concept_metadata("tool")["chance"]
    assert metadata["threshold"] is None and metadata["labels_of"] == "tool"  # three shuffles cannot tell


def test_shuffles_of_a_pool_that_is_everything(tmp_path: Path, tiny_model: Path) -> None:
    """Where the pool holds the positives too, shuffled labels share it; where some are neither, they stay so."""
    texts = [f"the {word} number {at}" for at, word in enumerate(["cat", "dog", "saw", "drill"] * 12)]
    concepts = [
        LabelledTexts("a", "", "", texts[:9], [], 0, []),
        LabelledTexts("b", "", "", texts[20:40], [], 0, texts[40:44]),
    ]
    write_lists(concepts, tmp_path / "corpus", held_out_percent=0, pools=[texts])
    run = tmp_path / "run"
    plan_new(run, tiny_model, tmp_path / "corpus", scoring={"permutations": 19, "null": "own"})
    run_all(run, SERIAL, SERIAL, top_k=5)  # type: ignore[arg-type]
    _, _, _, scored, _ = opened(run)
    assert len(scored.sets.pools) == 1
    for at in range(scored.mined, len(scored.sets.positives)):
        concept_id = int(scored.shuffled[at - scored.mined])
        positives, negatives = ((9, 39), (20, 24))[concept_id]
        assert len(scored.sets.positives[at]) == positives
        assert len(scored.sets.pools[0]) - len(scored.sets.removed[at]) == negatives
        assert set(scored.sets.positives[at].tolist()) <= set(scored.sets.removed[at].tolist())


def test_a_block_is_taken_on_in_strips_where_memory_is_short(
    mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(mined, tmp_path / "run"))
    for stage in ("score", "assess"):
        shutil.rmtree(run / "receipts" / stage)
    monkeypatch.setattr(MemoryBudget, "strip_units", lambda *_: 7)
    run_score(run, "serial", Cluster())
    assert Scorer(open_run(run)).strip_units == 7
    for path in (mined / "receipts" / "score").iterdir():
        ours, theirs = (json.loads((folder / "receipts" / "score" / path.name).read_text()) for folder in (run, mined))
        assert ours["checksums"] == theirs["checksums"]
    for path in (mined / "assessment").rglob("*.parquet"):
        assert (run / path.relative_to(mined)).read_bytes() == path.read_bytes()


def test_too_little_memory_is_told_with_what_would_do(mined: Path, tiny_model: Path, tiny_corpus: Path) -> None:
    with pytest.raises(
        StageError, match=r"may hold 50 MB, and .* take [\d.]+ [MG]B; raise --scoring-memory to at least that"
    ):
        Scorer(open_run(mined), memory=50_000_000)
    little = request(tiny_model)
    object.__setattr__(little, "scoring_memory", 10**8)
    with pytest.raises(UserError, match=r"--scoring-memory is 100 MB, and scoring one unit .* takes about \d+ MB"):
        make_plan(little, Corpus.open(tiny_corpus))


@pytest.mark.parametrize("given_, message", [
    ({"keep": 0}, "keep is 0"), ({"permutations": -1}, "permutations is -1"), ({"null": "none"}, "null is 'none'"),
    ({"resamples": -5}, "resamples is -5"),
])  # fmt: skip
def test_settings_without_sense_are_refused(given_: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScoringSpec(**given_)  # type: ignore[arg-type]


def test_what_a_kill_left_of_an_index_is_made_anew(mined: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mined, tmp_path / "run"))
    (run / "experts" / "experts.parquet").write_bytes(b"written, when index.json was not yet")
    assert [stage.done for stage in progress_of(run)][-1] == 0
    run_reduce(run, None)
    assert Experts.load(run).top_k == 500


def test_a_lost_selection_is_made_again(mined: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mined, tmp_path / "run"))
    shutil.rmtree(run / "selection")
    with pytest.raises(UserError, match=r"selection/max/00000.parquet is missing"):
        run_reduce(run, 5)
    run_score(run, "serial", Cluster())
    assert (read_selection(open_run(run), "max") == read_selection(open_run(mined), "max")).all()
    write_selection(
        open_run(run), "max", read_selection(open_run(run), "max")[::-1]
    )  # of other units than were assessed
    with pytest.raises(UserError, match=r"does not match the units selected in .*selection; remove .*receipts/assess"):
        run_reduce(run, 5)


def test_a_lost_or_torn_table_is_told(mined: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mined, tmp_path / "run"))
    (run / "null" / "max" / "00001.parquet").write_bytes(b"PAR1 torn")
    (run / "assessment" / "max" / "00000.parquet").unlink()
    damaged = [damage for damage in verify(run) if damage]
    assert [(damage.stage, damage.task) for damage in damaged] == [("score", 1), ("assess", 0)]
    with pytest.raises(UserError, match=r"null/max/00001.parquet cannot be read .* verify"):
        run_reduce(run, 5)
