"""Promises and proofs: plans, receipts, checksums, and what happens when they are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.corpora import LabelledTexts, write_lists
from support.partitions import write_responses
from support.plans import request

from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.mining import extract, score
from expertmine.mining.growth import plan_run
from expertmine.mining.planning import make_plan, refuse_what_will_not_fit
from expertmine.run.inspection import Damage, progress_of, verify
from expertmine.run.ledger import missing_tasks, read_receipts
from expertmine.run.open_run import OpenRun, open_corpus, open_run
from expertmine.run.paths import corpus_folder, plan_file
from expertmine.run.store import Store, create_store
from expertmine.specs.plan import Plan
from expertmine.storage.files import write_atomically, write_json

Edit = Callable[[Path, Callable[[dict], object]], None]  # type: ignore[type-arg]


def test_a_plan_survives_the_disk(new_run: Path) -> None:
    plan = open_run(new_run).plan
    assert Plan.from_json(json.loads(json.dumps(plan.to_json())), "here") == plan


def test_every_setting_is_in_the_fingerprint(new_run: Path) -> None:
    plan = open_run(new_run).plan
    changed = [
        replace(plan, responses=replace(plan.responses, poolings=("mean",))),
        replace(plan, responses=replace(plan.responses, batch_tokens=8192)),
        replace(plan, model=replace(plan.model, weights="other")),
        replace(plan, corpus=replace(plan.corpus, fingerprint="other")),
        replace(plan, hookpoints=plan.hookpoints[1:]),
        replace(plan, layout=replace(plan.layout, partition_rows=2 * plan.layout.partition_rows)),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in changed)}) == 7


def test_an_edited_plan_is_refused(new_run: Path, edit_json: Edit) -> None:
    edit_json(plan_file(new_run), lambda plan: plan["responses"].update(poolings=["mean"]))
    with pytest.raises(UserError, match="do not match its fingerprint"):
        open_run(new_run)


@pytest.mark.parametrize("content, message", [
    ("", "not JSON"), ("[]", "not a plan"), ('{"format": 99}', "plan format 99"), ('{"format": 3}', "not a plan"),
])  # fmt: skip
def test_a_damaged_plan_is_refused(content: str, message: str, tmp_path: Path) -> None:
    plan_file(tmp_path).write_text(content)
    with pytest.raises(UserError, match=message):
        open_run(tmp_path)


def test_a_run_folder_takes_one_plan(new_run: Path, tiny_corpus: Path, tiny_model: Path) -> None:
    corpus = Corpus.open(tiny_corpus)
    frozen = open_run(new_run).plan
    assert plan_run(new_run, corpus, request(tiny_model), force=False) == (frozen, None)
    with pytest.raises(UserError, match=r"is another plan: its poolings is \('max',\), and \('mean',\) is requested"):
        plan_run(new_run, corpus, request(tiny_model, poolings=("mean",)), force=False)
    with pytest.raises(UserError, match="is another plan: its model is"):
        plan_run(new_run, corpus, request(Path("embedded")), force=False)
    assert open_run(new_run).plan == frozen


def test_a_folder_of_other_things_is_left_alone(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is no run folder"):
        plan_run(tmp_path, Corpus.open(tiny_corpus), request(tiny_model), force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_corpus_in_the_run_is_refused(new_run: Path, tmp_path: Path) -> None:
    write_lists([LabelledTexts("a", "", "", ["x"], ["y"])], tmp_path / "other")
    plan = open_run(new_run).plan
    shutil.copytree(tmp_path / "other", corpus_folder(new_run, plan.corpus), dirs_exist_ok=True)
    with pytest.raises(UserError, match="not the corpus of this run"):
        open_corpus(open_run(new_run))


def test_what_will_not_fit_the_disk_is_refused(
    new_run: Path, tiny_corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bill = make_plan(request(tiny_model), Corpus.open(tiny_corpus))
    refuse_what_will_not_fit(new_run, bill)
    with pytest.raises(UserError, match=r"a process would hold 1e\+03 TB"):
        refuse_what_will_not_fit(new_run, replace(bill, extract_memory=10**15))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(total=10, used=9, free=1))
    with pytest.raises(UserError, match=r"may need .* has 1 B free.*--force"):
        refuse_what_will_not_fit(new_run, bill)


def test_a_torn_receipt_counts_as_not_written(new_run: Path) -> None:
    tasks = extract.plan(open_run(new_run))
    extract.Extractor(open_run(new_run), "cpu")(tasks[0])
    receipt = new_run / "receipts" / "extract" / "00000.json"
    receipt.write_bytes(receipt.read_bytes()[:40])
    assert extract.plan(open_run(new_run)) == tasks


def test_a_receipt_of_another_plan_is_refused(new_run: Path, edit_json: Edit) -> None:
    extract.plan(open_run(new_run))
    extract.Extractor(open_run(new_run), "cpu")(0)
    edit_json(new_run / "receipts" / "extract" / "00000.json", lambda receipt: receipt.update(fingerprint="other"))
    with pytest.raises(UserError, match="belongs to another plan"):
        extract.plan(open_run(new_run))


def test_stages_wait_for_the_ones_before_and_name_what_is_missing(new_run: Path) -> None:
    tasks = extract.plan(open_run(new_run))
    extractor = extract.Extractor(open_run(new_run), "cpu")
    for task in tasks[:-1]:
        extractor(task)
    with pytest.raises(UserError, match=rf"1 of {len(tasks)} extract tasks are not done \({tasks[-1]}\)"):
        score.plan(open_run(new_run))


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"old": True})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"facts\.json: cannot be written \(No space left"):
        write_atomically(path, b"new")
    assert json.loads(path.read_text()) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["facts.json"]


def test_the_store_gives_back_what_was_written(new_run: Path) -> None:
    plan = open_run(new_run).plan
    create_store(open_run(new_run))
    store = Store(open_run(new_run))
    rng = np.random.default_rng(0)
    values = rng.normal(size=(plan.layout.sentences, plan.layout.units)).astype(np.float16)
    for index in range(plan.layout.partitions):
        rows = plan.layout.partition(index)
        checksums = write_responses(store, index, values[rows.start : rows.stop], np.full(len(rows), 7, np.int32))
        assert f"tokens/c/{index}" in checksums
        assert store.sound(checksums)
        assert not store.sound({**checksums, f"responses/max/c/{index}/0": "0" * 64})
    for index in range(plan.layout.blocks):
        units = plan.layout.block(index)
        stored = store.read_responses("max", units)[: plan.layout.sentences]
        np.testing.assert_array_equal(stored, values[:, units.start : units.stop])
    assert (store.read_tokens()[: plan.layout.sentences] == 7).all()


def test_a_store_of_another_layout_or_none_is_refused(new_run: Path) -> None:
    plan = open_run(new_run).plan
    with pytest.raises(UserError, match=r"store\.zarr: cannot be opened"):
        Store(open_run(new_run))
    create_store(open_run(new_run))
    wider = replace(plan, layout=replace(plan.layout, units=5000))
    with pytest.raises(UserError, match="another layout"):
        Store(OpenRun(new_run, wider))


def test_scoring_refuses_lost_and_changed_shards(mined: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mined, tmp_path / "run"))
    shutil.rmtree(run / "receipts" / "score")
    shard = next(
        path for path in sorted((run / "store.zarr" / "responses" / "max" / "c" / "1").rglob("*")) if path.is_file()
    )
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"store\.zarr is damaged"):
        score.Scorer(open_run(run))(0)
    shard.unlink()
    with pytest.raises(UserError, match="partition 1 has lost a shard"):
        score.Scorer(open_run(run))
    (run / "store.zarr" / "tokens" / "c" / "0").unlink()
    with pytest.raises(UserError, match="partition 0 has lost a shard"):
        score.Scorer(open_run(run))
    assert Damage("extract", 1) in list(verify(run))
    assert not (run / "receipts" / "score").exists()


def test_a_partition_of_zeros_is_stored_all_the_same(new_run: Path) -> None:
    plan = open_run(new_run).plan
    create_store(open_run(new_run))
    store = Store(open_run(new_run))
    for index in range(plan.layout.partitions):
        rows = len(plan.layout.partition(index))
        write_responses(store, index, np.zeros((rows, plan.layout.units), np.float16), np.ones(rows, np.int32))
    store.require_every_shard()


def test_verify_finds_changed_and_torn_shards(mined: Path, tmp_path: Path) -> None:
    assert not any(verify(mined))
    run = Path(shutil.copytree(mined, tmp_path / "run"))
    shards = sorted((run / "store.zarr" / "responses" / "max" / "c").rglob("*"))
    shards = [path for path in shards if path.is_file()]
    torn = shards[0]
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    (damaged,) = [verdict for verdict in verify(run) if verdict]
    assert damaged == Damage("extract", 0)
    Store(open_run(run)).write_scores(
        "max",
        1,
        {name: np.zeros((2, 1)) for name in ("ap", "auroc", "held_out_ap", "on_mean", "on_p50", "on_p90", "off_mean")},
    )
    assert Damage("score", 1) in list(verify(run))


def test_progress_is_read_from_receipts(mined: Path, new_run: Path) -> None:
    done = {stage.stage: (stage.done, stage.total) for stage in progress_of(mined)}
    plan = open_run(mined).plan
    assert done["extract"] == (plan.layout.partitions, plan.layout.partitions)
    assert done["score"] == (plan.layout.blocks, plan.layout.blocks)
    assert done["reduce"] == (1, 1)
    assert [stage.done for stage in progress_of(new_run)] == [0, 0, 0, 0]
    sentences = sum(r.counts["sentences"] for r in read_receipts(open_run(mined), "extract"))
    assert sentences == plan.corpus.sentences
    assert not missing_tasks(open_run(mined), "score")
