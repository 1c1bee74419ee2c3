"""What extraction does when something is wrong: poisoned sentences, full disks, no memory, actors that cannot live."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import expertmine, succeed
from support.corpora import LabelledTexts, write_lists
from support.plans import plan_new

from expertmine.errors import UserError
from expertmine.mining import extract
from expertmine.mining.mine import run_extract
from expertmine.run.inspection import progress_of, workers_of
from expertmine.run.ledger import read_failures, read_receipts
from expertmine.run.open_run import OpenRun, open_run
from expertmine.run.sentences import texts as texts_of
from expertmine.run.store import Store
from expertmine.runtime.cluster import Cluster
from expertmine.runtime.outcomes import ATTEMPTS, Failed

Edit = Callable[[Path, Callable[[dict], object]], None]  # type: ignore[type-arg]


def changed_model(model: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a model folder with other weights."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def poison(word: str) -> Callable[[dict[str, torch.Tensor]], object]:
    """Make the embedding of a word's tokens NaN."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        from expertmine.model.load import load_model

        ids = load_model("embedded").tokenizer(f"a {word}")["input_ids"][2:]
        tensors["transformer.wte.weight"][ids] = torch.nan

    return change


@pytest.fixture
def on(request: pytest.FixtureRequest) -> tuple[object, ...]:
    """Options by which extraction runs on an executor, given as parameter: on the session's Ray where it is Ray."""
    if request.param == "serial":
        return ("--executor", "serial")
    return ("--executor", "ray", "--address", request.getfixturevalue("ray_address"), "--workers", 2)


SERIAL_AND_RAY = ["serial", pytest.param("ray", marks=pytest.mark.slow)]


@pytest.mark.parametrize("on", SERIAL_AND_RAY, indirect=True)
def test_a_poisoned_sentence_costs_its_partition_alone(
    on: tuple[object, ...], tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    model = changed_model(tiny_model, tmp_path / "model", poison("anvil"))
    plan, _ = plan_new(run, model, tiny_corpus, partition_rows=8)
    texts = [text for task in range(9) for text in texts_of(open_run(run), task)]
    bad = {row // 8 for row, text in enumerate(texts) if "anvil" in text}
    done = expertmine("extract", run, *on)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    message = done.stderr.splitlines()[-1]
    assert (
        f"extract task {min(bad)} failed: hookpoint 'transformer.h.0.attn.c_attn', unit 0: the response to" in message
    )
    assert "anvil" in message
    assert f"({len(bad)} of 9 tasks failed, the other {9 - len(bad)} are done" in message
    assert {receipt.task for receipt in read_receipts(OpenRun(run, plan), "extract")} == set(range(9)) - bad
    reports = read_failures(run, "extract")
    assert {report.task for report in reports} == bad
    assert all(any("anvil" in text for text in report.sentences) for report in reports)
    assert f"gave up task {min(bad)}:" in succeed("status", run)


def test_a_failure_that_was_mended_is_forgotten(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    plan_new(run, tiny_model, tiny_corpus)
    sentences = run / "sentences" / "00000.parquet"
    whole = sentences.read_bytes()
    sentences.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"00000\.parquet: cannot be read"):
        run_extract(run, "serial", Cluster())
    assert read_failures(run, "extract")
    sentences.write_bytes(whole)
    run_extract(run, "serial", Cluster())
    assert not read_failures(run, "extract")


def mortal(folder: Path, deadly: set[int]) -> Callable[[], Callable[[int], int]]:
    """Makes workers whose process dies of some tasks, always; and of task 1 the first time."""

    def work(task: int) -> int:
        if task in deadly or (task == 1 and not (folder / "died").exists()):
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    return lambda: work


@pytest.mark.slow
def test_a_task_that_kills_every_actor_is_given_up_and_the_rest_is_done(ray_address: str, tmp_path: Path) -> None:
    from expertmine.runtime import ray

    with ray.cluster(ray_address):
        found = list(ray.RayExecutor(actors=2, in_flight=3).run(mortal(tmp_path, {4}), range(12)))
    failed = [each for each in found if isinstance(each, Failed)]
    assert [(each.task, each.attempts) for each in failed] == [(4, ATTEMPTS)]
    assert sorted(each for each in found if isinstance(each, int)) == [task for task in range(12) if task != 4]


@pytest.mark.slow
def test_actors_that_only_die_end_the_stage(ray_address: str, tmp_path: Path) -> None:
    from expertmine.runtime import ray

    with ray.cluster(ray_address), pytest.raises(UserError, match="attempts in a row failed"):
        list(ray.RayExecutor(actors=1).run(mortal(tmp_path, set(range(100))), range(100)))


class _Scarce:
    """Runs out of memory in passes of more than so many tokens."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.refused = 0

    def __call__(self, module: object, arguments: object, options: dict[str, torch.Tensor]) -> None:
        if options["input_ids"].numel() > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_batches_get_smaller_when_memory_runs_out(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    plan, _ = plan_new(tmp_path / "run", tiny_model, tiny_corpus)
    whole = Path(shutil.copytree(tmp_path / "run", tmp_path / "whole"))
    stored = {}
    for run, limit in ((whole, 10**9), (tmp_path / "run", 100)):
        tasks = extract.plan(open_run(run))
        extractor = extract.Extractor(open_run(run), "cpu")
        scarce = _Scarce(limit)
        extractor.loaded.model.base_model.register_forward_pre_hook(scarce, with_kwargs=True)
        halvings = [extractor(task).counts["halvings"] for task in tasks]
        assert (halvings[0] > 0) == (limit == 100)
        assert scarce.refused == halvings[-1]  # what was learnt is kept for later batches
        stored[run] = Store(OpenRun(run, plan)).read_responses("max", range(plan.layout.units)).astype(float)
    np.testing.assert_allclose(stored[tmp_path / "run"], stored[whole], rtol=2e-3, atol=1e-5)
    assert "batches were made smaller" in succeed("status", tmp_path / "run")


def test_a_sentence_too_large_for_the_memory_is_told(new_run: Path) -> None:
    extract.plan(open_run(new_run))
    extractor = extract.Extractor(open_run(new_run), "cpu")
    extractor.loaded.model.base_model.register_forward_pre_hook(_Scarce(5), with_kwargs=True)
    with pytest.raises(UserError, match=r"one sentence of .* tokens is too much for the memory"):
        extractor(0)


def test_other_errors_of_the_model_are_not_taken_for_scarcity(new_run: Path) -> None:
    extract.plan(open_run(new_run))
    extractor = extract.Extractor(open_run(new_run), "cpu")

    def broken(module: object, arguments: object) -> None:
        raise RuntimeError("shapes do not match")

    extractor.loaded.model.base_model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        extractor(0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def random_texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    words = ["cat", "dog", "saw", "raven", "rake", "trout", "lathe", "wolf", "clamp", "bear", "mouse", "iron"]
    return [" ".join(rng.choice(words, 6)) + f" {at}" for at in range(count)]


@pytest.mark.parametrize("on", SERIAL_AND_RAY, indirect=True)
def test_a_full_disk_stops_the_stage_and_room_lets_it_go_on(
    on: tuple[object, ...], tiny_model: Path, small_disk: Path, tmp_path: Path
) -> None:
    texts = random_texts(600)
    write_lists([LabelledTexts("a", "", "", texts[:300], texts[300:])], tmp_path / "corpus", held_out_percent=0)
    plan, _ = plan_new(tmp_path / "run", tiny_model, tmp_path / "corpus", partition_rows=64)
    done = Path(shutil.copytree(tmp_path / "run", tmp_path / "done"))
    succeed("extract", done, "--executor", "serial")
    run = Path(shutil.copytree(tmp_path / "run", small_disk / "run"))
    stopped = expertmine("extract", run, *on)
    assert stopped.returncode == 2
    assert "cannot be written (No space left on device)" in stopped.stderr.splitlines()[-1]
    assert "Traceback" not in stopped.stderr
    assert len(list(read_receipts(OpenRun(run, plan), "extract"))) < plan.tasks("extract")
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    succeed("extract", run, *on)
    for path in (done / "store.zarr").rglob("*"):
        assert path.is_dir() or (run / path.relative_to(done)).read_bytes() == path.read_bytes()


def test_a_read_only_folder_is_told(planned: Path, small_disk: Path) -> None:
    run = Path(shutil.copytree(planned, small_disk / "run"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    stopped = expertmine("extract", run, "--executor", "serial")
    assert stopped.returncode == 2
    assert "cannot be written (Read-only file system)" in stopped.stderr
    assert "Traceback" not in stopped.stderr


@pytest.mark.parametrize(
    "content", [b"", b'{"stage": "extract", "task": 0', b"[1, 2]", b'{"stage": "extract"}', b"\xff"]
)
def test_torn_and_foreign_receipts_count_as_not_written(content: bytes, new_run: Path) -> None:
    tasks = extract.plan(open_run(new_run))
    extract.Extractor(open_run(new_run), "cpu")(tasks[0])
    assert extract.plan(open_run(new_run)) == tasks[1:]
    (new_run / "receipts" / "extract" / "00000.json").write_bytes(content)
    assert extract.plan(open_run(new_run)) == tasks


def test_the_receipt_of_another_task_is_no_proof(new_run: Path) -> None:
    tasks = extract.plan(open_run(new_run))
    extract.Extractor(open_run(new_run), "cpu")(tasks[0])
    receipts = new_run / "receipts" / "extract"
    shutil.copy(receipts / "00000.json", receipts / "00001.json")
    assert extract.plan(open_run(new_run)) == tasks[1:]


def test_torn_shards_of_a_former_attempt_do_no_harm(mined: Path, new_run: Path) -> None:
    tasks = extract.plan(open_run(new_run))
    extractor = extract.Extractor(open_run(new_run), "cpu")
    extractor(tasks[0])
    (new_run / "receipts" / "extract" / "00000.json").unlink()
    for shard in (new_run / "store.zarr" / "responses" / "max" / "c" / "0").iterdir():
        shard.write_bytes(shard.read_bytes()[:50])
    extractor(tasks[0])
    for shard in (new_run / "store.zarr" / "responses" / "max" / "c" / "0").iterdir():
        assert shard.read_bytes() == (mined / shard.relative_to(new_run)).read_bytes()


def test_saturated_responses_are_stored_as_the_largest_and_counted(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.h.1.mlp.c_fc.weight"][:, :4] = 0
        tensors["transformer.h.1.mlp.c_fc.bias"][:4] = torch.tensor([1e9, -1e9, -1e-9, 1.5])

    model = changed_model(tiny_model, tmp_path / "model", change)
    values = {}
    for dtype in ("float16", "float32"):
        run = tmp_path / dtype
        plan, _ = plan_new(run, model, tiny_corpus, dtype=dtype)
        run_extract(run, "serial", Cluster())
        (hookpoint,) = [each for each in plan.hookpoints if each.name == "transformer.h.1.mlp.c_fc"]
        units = range(hookpoint.units.start, hookpoint.units.start + 4)
        values[dtype] = Store(OpenRun(run, plan)).read_responses("max", units)[:72]
        saturated = progress_of(run)[0].counts.get("saturated transformer.h.1.mlp.c_fc", 0)
        assert saturated == (144 if dtype == "float16" else 0)
    assert (values["float16"] == np.float16([65504, -65504, 0, 1.5])).all()
    assert not np.signbit(values["float16"][:, 2]).any()
    assert (values["float32"] == np.float32([1e9, -1e9, -1e-9, 1.5])).all()
    assert "responses beyond float16's range" in succeed("status", tmp_path / "float16")


def test_status_tells_what_workers_do(new_run: Path) -> None:
    tasks = extract.plan(open_run(new_run))
    extractor = extract.Extractor(open_run(new_run), "cpu")
    seen: list[str] = []
    extractor.loaded.model.base_model.register_forward_pre_hook(
        lambda module, arguments: seen.append(workers_of(new_run)[0].state.doing)
    )
    extractor(tasks[0])
    assert set(seen) == {"running 0"}
    (worker,) = workers_of(new_run)
    assert worker.alive
    assert (worker.state.doing, worker.state.tasks, worker.state.process) == ("waiting", 1, os.getpid())
    (stage, *_) = progress_of(new_run)
    assert stage.per_second["tokens"] > 0
    assert stage.seconds_left is not None
    path = next((new_run / "workers").glob("extract-*.json"))
    document = json.loads(path.read_text())
    document["process"] = 2**22 + 1  # more than Linux gives
    path.write_text(json.dumps(document))
    assert workers_of(new_run)[0].alive is False
    assert "ended" in succeed("status", new_run)
    path.write_text("{")
    assert workers_of(new_run) == []


def test_partitions_of_several_kinds_of_machine_are_told(mined: Path, tmp_path: Path, edit_json: Edit) -> None:
    run = Path(shutil.copytree(mined, tmp_path / "run"))
    edit_json(run / "receipts" / "extract" / "00001.json", lambda receipt: receipt.update(platform="another"))
    assert open_run(run).plan
    assert "ran on 2 kinds of machine (another; " in succeed("status", run)
