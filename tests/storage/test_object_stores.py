"""Runs and corpora on an object store: the same bytes as on a disk, through kills, refusals and outages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from support.commands import assert_refused, expertmine_process, refused, succeed
from support.corpora import LabelledTexts, write_lists
from support.plans import plan_new
from support.plans import request as ask
from support.s3_server import BUCKET, SECRET, S3Server, s3_server

from expertmine import Experts
from expertmine.corpus.reader import Corpus
from expertmine.errors import StageError, UserError
from expertmine.mining.growth import begin
from expertmine.mining.mine import freeze_plan, run_all, run_extract, run_score
from expertmine.run import lease as locks
from expertmine.run.lease import LeaseHolder
from expertmine.run.ledger import missing_tasks, read_receipts
from expertmine.run.open_run import open_run
from expertmine.run.store import Store
from expertmine.runtime.cluster import Cluster
from expertmine.storage import files
from expertmine.storage.locations import Location, location, same

SERIAL = ("serial", Cluster())
TOP_K = 20
RESULTS = ("store.zarr", "sentences", "null", "assessment", "selection", "experts")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running, mock.patch.dict(os.environ, running.environment):
        location(f"s3://{BUCKET}/any").fs.mkdir(BUCKET)
        yield running


@pytest.fixture
def folder(server: S3Server, request: pytest.FixtureRequest) -> Location:
    """A folder of the test's own in the bucket."""
    server.reset()
    return location(f"s3://{BUCKET}/{request.node.name.partition('[')[0]}")


def listed(folder: Location) -> dict[str, bytes]:
    return {name: files.read_bytes(folder / name) for name in files.sizes(folder)}


def assert_same_results(run: Location, done: Path) -> None:
    for name in RESULTS:
        assert listed(run / name) == listed(done / name), name
    for stage in ("extract", "score", "assess"):
        ours, theirs = (
            {each.task: (each.checksums, each.fingerprint) for each in read_receipts(open_run(where), stage)}
            for where in (run, done)
        )
        assert ours == theirs
        assert theirs


def plan_there(run: Location, done: Path) -> None:
    """The plan of a local run, saved on an object store."""
    plan = open_run(done).plan
    begin(run, plan, Corpus.open(next((done / "corpus").iterdir())))


@pytest.fixture(scope="module")
def done(tiny_model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job on a disk, by one process."""
    run = tmp_path_factory.mktemp("done") / "run"
    plan_new(run, tiny_model, tiny_corpus)
    run_all(run, SERIAL, SERIAL, TOP_K)
    return run


@pytest.mark.slow
def test_the_whole_job_from_the_command_line(
    folder: Location, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    succeed("concepts", "merge", tiny_corpus, "--out", f"{folder}/corpus")
    assert Corpus.open(folder / "corpus").identity.concepts == Corpus.open(tiny_corpus).identity.concepts
    options = ("--model", tiny_model, "--extract-on", "serial", "--score-on", "serial")
    options = (*options, "--max-tokens", 64, "--top-k", TOP_K)
    printed = succeed("mine", f"{folder}/run", "--corpus", f"{folder}/corpus", *options)
    succeed("mine", tmp_path / "run", "--corpus", f"{folder}/corpus", *options)
    assert_same_results(folder / "run", tmp_path / "run")
    assert SECRET not in printed
    assert "nothing" not in succeed("verify", f"{folder}/run")
    assert json.loads(succeed("status", f"{folder}/run", "--json"))["stages"]
    name = next(iter(Experts.load(tmp_path / "run")))
    here, there = (succeed("experts", where, name, "--json") for where in (tmp_path / "run", f"{folder}/run"))
    assert json.loads(here) == json.loads(there)
    report = tmp_path / "report.html"
    succeed("report", f"{folder}/run", "--out", report)
    assert name in report.read_text()
    everything = b"".join(content for content in listed(folder).values())
    assert SECRET.encode() not in everything


@pytest.mark.slow
def test_ray_and_dask_workers_write_the_same_bytes(folder: Location, done: Path) -> None:
    plan_there(folder, done)
    run_extract(folder, "ray", Cluster(workers=2))
    run_score(folder, "dask", Cluster(workers=2))
    run_all(folder, SERIAL, SERIAL, TOP_K)
    assert_same_results(folder, done)


@pytest.mark.slow
def test_a_killed_process_is_gone_on_for(server: S3Server, folder: Location, done: Path) -> None:
    plan_there(folder, done)
    server.delay = 0.2  # slow enough to be killed half-way
    command = [sys.executable, "-m", "expertmine", "extract", str(folder), "--executor", "serial"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    plan = open_run(folder).plan
    while len(missing_tasks(open_run(folder), "extract")) == plan.tasks("extract"):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.kill()
    process.wait()
    server.delay = 0
    assert missing_tasks(open_run(folder), "extract")
    run_all(folder, SERIAL, SERIAL, TOP_K)  # and takes over the lease
    assert_same_results(folder, done)


@pytest.mark.slow
def test_refusals_and_an_outage_are_waited_for(
    server: S3Server, folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FIRST_PAUSE", 0.1)
    server.refusals = 12
    files.write_atomically(folder / "written", b"1")
    assert server.refusals == 0
    server.refusals = 4
    assert files.read_bytes(folder / "written") == b"1"
    server.stop()
    back = threading.Timer(1.5, server.start)
    back.start()
    try:
        files.write_atomically(folder / "written", b"2")
    finally:
        back.join()
    assert files.read_bytes(folder / "written") == b"2"


def test_a_store_that_stays_away_is_one_message(
    server: S3Server, folder: Location, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(files, "ATTEMPTS", 2)
    plan_there(folder, done)
    server.refusals = 10**6
    with pytest.raises(StageError, match=r"cannot be written .*fix the cause and rerun the command"):
        files.write_atomically(folder / "x", b"")
    with pytest.raises(UserError, match="cannot be read"):
        open_run(folder)


@pytest.mark.slow
def test_missing_and_wrong_keys_are_one_message_at_once(server: S3Server, folder: Location) -> None:
    # Keys are read once by a process.
    with mock.patch.dict(os.environ, {"AWS_ACCESS_KEY_ID": "somebody-else"}):
        wrong = expertmine_process("status", folder)
    bare = {name: value for name, value in os.environ.items() if not name.startswith("AWS_ACCESS")}
    with mock.patch.dict(os.environ, {**bare, "AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent"}, clear=True):
        missing = expertmine_process("status", folder)
    for done, words in ((wrong, "cannot be read (Forbidden)"), (missing, "redentials")):
        assert_refused(done)
        assert words in done.stderr
    assert server.methods.total() < 10, "refusals of keys are not tried again"


def test_of_several_who_create_an_object_one_does(folder: Location) -> None:
    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(lambda at: files.create(folder / "one", str(at).encode()), range(8)))
    assert created.count(True) == 1
    assert files.read_bytes(folder / "one") == str(created.index(True)).encode()


def test_a_creation_whose_answer_was_lost_counts(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FIRST_PAUSE", 0.01)
    assert not isinstance(folder, Path)
    pipe, answered = folder.fs.pipe_file, []

    def lossy(*given: object, **options: object) -> object:
        answer = pipe(*given, **options)
        answered.append(answer)
        if len(answered) == 1:
            raise ConnectionResetError("the answer was lost")
        return answer

    monkeypatch.setattr(folder.fs, "pipe_file", lossy)
    assert files.create(folder / "one", b"ours")
    assert not files.create(folder / "one", b"another's")


def test_requests_in_flight_are_bounded(server: S3Server, folder: Location) -> None:
    for at in range(60):
        files.write_atomically(folder / f"{at}", str(at).encode())
    server.reset()
    paths = [folder / f"{at}" for at in range(300)]
    found = list(files.read_each(paths))
    assert found == [str(at).encode() for at in range(60)] + [None] * 240
    assert 2 <= server.peak <= files.TOGETHER


def test_two_drivers_of_one_run(folder: Location, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_there(folder, done)
    with locks.driving(folder, "expertmine mine"):
        another = expertmine_process("score", folder, "--executor", "serial")
    assert_refused(another)
    assert f"driven by `expertmine mine`, process {os.getpid()}" in another.stderr
    elsewhere = LeaseHolder(9, "far", "another machine", 7, "1", "expertmine mine", 0.0)
    files.write_json(folder / "lock" / "00000009.json", asdict(elsewhere))
    monkeypatch.setattr(locks, "STALE", 0.4)
    monkeypatch.setattr(locks, "POLL", 0.1)
    heard: list[str] = []
    with locks.driving(folder, "expertmine score", heard.append) as lease:
        assert lease.holder.term == 10
    assert "process" in heard[0] and "on far" in heard[0]


def test_a_lost_object_is_not_taken_for_zeros(folder: Location, done: Path) -> None:
    plan_there(folder, done)
    run_extract(folder, "serial", Cluster())
    receipt = next(read_receipts(open_run(folder), "extract"))
    lost = next(key for key in receipt.checksums if key.startswith("responses"))
    files.remove(folder / "store.zarr" / lost)
    assert not Store(open_run(folder)).sound(receipt.checksums)
    with pytest.raises(UserError, match="partition 0 has lost a shard"):
        run_score(folder, "serial", Cluster())


def test_large_objects_come_whole(folder: Location) -> None:
    content = np.random.default_rng(0).bytes(110 * 2**20)  # several parts of an upload
    files.write_atomically(folder / "large", content)
    assert files.sizes(folder) == {"large": len(content)}
    assert files.read_bytes(folder / "large") == content


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing://bucket/run", "fsspec knows no protocol 'nothing'"),
        ("s3://", "names no bucket"),
        ("s3://key:hidden@bucket/run", "holds credentials; remove them from the URL"),
        ("s3://bucket/run[1]", "are wildcards on an object store"),
        ("s3:/bucket/run", "a slash is missing"),
        ("gs://bucket/run", "needs a library that is not installed"),
    ],
)
def test_urls_that_cannot_be_are_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        location(text)
    assert "hidden" not in str(caught.value)
    assert words in refused("status", text)


def test_one_place_written_in_two_ways(tmp_path: Path, folder: Location) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert same(tmp_path / "link", tmp_path)
    assert same(location(f"{folder}/"), folder)
    assert not same(tmp_path, folder)


@pytest.mark.slow
def test_a_corpus_may_grow_there(folder: Location, tiny_model: Path, tmp_path: Path) -> None:
    texts = [f"the number {at} is said" for at in range(80)]
    small = [LabelledTexts("few", "", "", texts[:20], texts[20:40])]
    large = [*small, LabelledTexts("more", "", "", texts[40:60], texts[60:80])]
    for at, lists in enumerate((small, large)):
        write_lists(lists, tmp_path / f"corpus{at}")
        freeze_plan(folder, tmp_path / f"corpus{at}", ask(tiny_model, scoring={"resamples": 10}))
        run_all(folder, SERIAL, SERIAL, TOP_K)
    assert set(Experts.load(folder)) == {"few", "more"}
    assert len(files.children(folder / "corpus")) == 1
