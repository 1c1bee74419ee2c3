"""The command line from outside: the whole job on real Ray and Dask, killed and resumed, and all kinds of bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from conftest import animal_and_tool
from support.commands import expertmine, refused, succeed
from support.plans import plan_new
from typer.testing import CliRunner

from expertmine.cli import app as cli
from expertmine.runtime import ray


def files(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder, but for news of workers and who drove it."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(("workers/", "lock/"))}


@pytest.fixture(scope="module")
def concept_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("concepts")
    for concept in animal_and_tool():
        sentences = {"positive": concept.positives, "negative": concept.negatives}
        document = {"concept": concept.name, "group": "test", "sentences": sentences}
        (folder / f"{concept.name}.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def corpus(concept_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "corpus"
    assert "2 concepts, 72 unique sentences" in succeed(
        "concepts", "json", concept_files, "--out", folder, "--held-out", 40
    )
    return folder


@pytest.fixture(scope="module")
def serial_run(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("serial") / "run"
    on = ("--extract-on", "serial", "--score-on", "serial")
    succeed("mine", run, "--model", tiny_model, "--corpus", corpus, "--max-tokens", 64, "--top-k", 50, *on)
    return run


@pytest.mark.slow
def test_ray_and_dask_give_the_same_bytes_as_one_process(
    serial_run: Path, corpus: Path, tiny_model: Path, ray_address: str, dask_address: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    on = ("--ray-address", ray_address, "--dask-address", dask_address, "--workers", 2)
    output = succeed("mine", run, "--model", tiny_model, "--corpus", corpus, "--max-tokens", 64, "--top-k", 50, *on)
    assert "expert index" in output
    ours, theirs = files(run), files(serial_run)
    assert ours.keys() == theirs.keys()
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert all(name.startswith("receipts/") for name in differing)  # receipts hold seconds
    for name in differing:
        one, other = json.loads(ours[name]), json.loads(theirs[name])
        assert (one["checksums"], one["fingerprint"]) == (other["checksums"], other["fingerprint"])


def wait_for_a_receipt(run: Path) -> None:
    receipts = run / "receipts" / "extract"
    deadline = time.monotonic() + 120
    while not any(receipts.glob("[0-9]*.json")):
        assert time.monotonic() < deadline, "no task was done in two minutes"
        time.sleep(0.005)


def receipts_of(run: Path) -> int:
    return len(list((run / "receipts" / "extract").glob("[0-9]*.json")))


@pytest.fixture(scope="module")
def longer_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of 4,000 sentences taken to its end, and the same run planned only: time enough to be killed in."""
    folder = tmp_path_factory.mktemp("longer")
    texts = [f"the number {number} and its neighbour {number + 1} are both known by name" for number in range(4000)]
    document = {"concept": "early", "sentences": {"positive": texts[:2000], "negative": texts[2000:]}}
    (folder / "early.json").write_text(json.dumps(document))
    succeed("concepts", "json", folder / "early.json", "--out", folder / "corpus")
    arguments = ("--model", tiny_model, "--corpus", folder / "corpus", "--max-tokens", 64)
    plan_new(folder / "planned", tiny_model, folder / "corpus", partition_rows=16, batch_tokens=256)
    arguments = (*arguments, "--batch-tokens", 256)
    serial = ("--extract-on", "serial", "--score-on", "serial")
    shutil.copytree(folder / "planned", folder / "done")
    succeed("mine", folder / "done", *arguments, "--top-k", 50, *serial)
    return folder / "done", folder / "planned"


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["ray", "serial"])
def test_a_run_killed_in_the_middle_goes_on_to_the_same_bytes(
    executor: str, longer_run: tuple[Path, Path], tmp_path: Path
) -> None:
    done, planned = longer_run
    run = Path(shutil.copytree(planned, tmp_path / "run"))
    command = [sys.executable, "-m", "expertmine", "extract", str(run), "--executor", executor]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for_a_receipt(run)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < receipts_of(run) < receipts_of(done)
    succeed("extract", run, "--executor", "serial")
    succeed("score", run, "--executor", "serial")
    succeed("reduce", run, "--top-k", 50)
    assert files(run / "store.zarr") == files(done / "store.zarr")
    assert files(run / "experts") == files(done / "experts")


@pytest.mark.slow
def test_ctrl_c_ends_with_a_message_and_keeps_finished_tasks(
    longer_run: tuple[Path, Path], ray_address: str, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(longer_run[1], tmp_path / "run"))
    command = [sys.executable, "-m", "expertmine", "extract", str(run), "--address", ray_address, "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_a_receipt(run)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; finished work is kept" in stderr
    assert "Traceback" not in stderr
    assert 0 < receipts_of(run) < receipts_of(longer_run[0])
    succeed("extract", run, "--executor", "serial")
    assert "match" in succeed("verify", run)


def test_the_stages_one_by_one_on_stated_executors(
    serial_run: Path, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = expertmine("plan", run, "--model", tiny_model, "--corpus", corpus, "--max-tokens", 64)
    assert "2 concepts × 576 units = 1,152" in done.stderr
    succeed("extract", run, "--executor", "serial")
    succeed("score", run, "--executor", "serial")
    succeed("reduce", run, "--top-k", 50)
    assert files(run / "experts") == files(serial_run / "experts")
    assert "tasks match their receipts" in succeed("verify", run)
    stages = json.loads(succeed("status", run, "--json"))["stages"]
    assert [stage["done"] == stage["total"] for stage in stages] == [True] * 4


def test_showing_a_corpus_and_experts(serial_run: Path, corpus: Path) -> None:
    shown = json.loads(succeed("concepts", "show", corpus, "--json"))
    assert [concept["concept"] for concept in shown["concepts"]] == ["animal", "tool"]
    assert "36 positive" in succeed("concepts", "show", corpus, "animal")
    experts = json.loads(succeed("experts", serial_run, "tool", "-k", 5, "--json"), parse_constant=str)["experts"]
    table = pq.read_table(serial_run / "experts" / "experts.parquet").to_pylist()
    expected = [row["unit"] for row in table if row["concept"] == "tool"][:5]
    assert [expert["unit"] for expert in experts] == expected
    assert str(expected[0]) in succeed("experts", serial_run, "tool", "-k", 5)


def test_chance_and_stability_are_printed(serial_run: Path) -> None:
    every = succeed("experts", serial_run).splitlines()
    assert every[0].split()[:2] == ["concept", "positives"] and len(every) == 3
    one = succeed("experts", serial_run, "animal", "-k", 3)
    assert "when labels are shuffled (20 times, labels of" in one
    assert "stay among the 10 best when sentences are resampled (100 times, among the 100 best)" in one
    (metadata, _) = json.loads(succeed("experts", serial_run, "--json"))
    assert metadata["name"] == "animal" and 0 < metadata["best"]["p_value"] <= 1
    assert metadata["best"]["held_out_low"] <= metadata["best"]["held_out_high"]
    assert "layer 1" in succeed("distribution", serial_run, "animal")
    (first, *_) = json.loads(succeed("distribution", serial_run, "--by", "kind", "--json"))["groups"]
    assert first["name"] == "transformer.h.*.attn.c_attn" and first["pairs"] == 2 * 2 * 96 == sum(first["bins"])


def test_scoring_again_with_other_settings(serial_run: Path, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(serial_run, tmp_path / "run"))
    mine = ("mine", run, "--model", tiny_model, "--corpus", corpus, "--max-tokens", 64)
    on = ("--extract-on", "serial", "--score-on", "serial")
    done = expertmine(*mine, *on, "--keep", 4, "--permutations", 39, "--scoring-memory", "1.5GB", "--top-k", 4)
    assert done.returncode == 0, done.stderr
    assert "39 shuffles of labels" in done.stderr and "extract:" not in done.stderr
    expertmine("plan", *mine[1:], "--resamples", 7)
    assert "was planned again after" in expertmine("experts", run, "animal", "-k", 2).stderr
    index = json.loads((run / "experts" / "index.json").read_text())
    assert (index["scoring"]["keep"], index["scoring"]["permutations"], index["scoring"]["resamples"]) == (4, 39, 100)
    assert "is already planned" in expertmine(*mine, *on).stderr  # options that are not given stay


def test_several_poolings_have_an_index_each(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--model", tiny_model, "--corpus", corpus, "--max-tokens", 64, "--pooling", "mean,max", "--codec", "lz4")
    planned = json.loads(succeed("plan", run, *options, "--json"))
    assert planned["plan"]["responses"]["poolings"] == ["mean", "max"]
    assert planned["bill"]["units"] == 576
    assert "is already planned" in expertmine("plan", run, *options).stderr
    output = succeed("mine", run, *options, "--top-k", 20, "--extract-on", "serial", "--score-on", "serial")
    assert output.splitlines() == [f"{run / 'experts'}: expert index", f"{run / 'experts-max'}: expert index"]
    assert "tasks match their receipts" in succeed("verify", run)
    found = {
        pooling: json.loads(succeed("experts", run, "animal", "--pooling", pooling, "--json"), parse_constant=str)
        for pooling in ("mean", "max")
    }
    assert found["mean"] != found["max"]
    assert json.loads(succeed("experts", run, "animal", "--json"), parse_constant=str) == found["mean"]
    assert "no experts by last pooling" in refused("experts", run, "animal", "--pooling", "last")
    texts = [
        succeed("generate", run, "--concept", "animal", "-k", 20, "--prompt", "the", "--pooling", pooling)
        for pooling in ("mean", "max")
    ]
    assert texts[0] != texts[1]


def test_listing_units(tiny_model: Path) -> None:
    document = json.loads(succeed("units", "--model", tiny_model, "--hookpoint", "mlp", "--json"))
    names = [hookpoint["name"] for hookpoint in document["hookpoints"]]
    assert names == [f"transformer.h.{layer}.mlp.{name}" for layer in (0, 1) for name in ("c_fc", "c_proj")]
    assert document["units"] == 2 * (128 + 32)
    shown = succeed("units", "--model", tiny_model)
    assert "transformer.h.1.mlp.c_fc" in shown
    assert "8 hookpoints, 576 units" in shown
    assert "matches no module" in refused("units", "--model", tiny_model, "--hookpoint", "nothing.*")


@pytest.mark.slow
def test_generating_in_this_process_and_in_a_ray_actor_writes_the_same(serial_run: Path, ray_address: str) -> None:
    arguments = ("generate", serial_run, "--concept", "tool", "-k", 30, "--prompt", "the", "-n", 3, "--json")
    here = json.loads(succeed(*arguments))
    assert len(here["texts"]) == 3
    with ray.cluster(ray_address):
        assert json.loads(succeed(*arguments, "--executor", "ray")) == here


def commands(app: typer.Typer, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every verb, as its words."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield (*before, command.name or command.callback.__name__.replace("_", "-"))
    for group in app.registered_groups:
        assert group.typer_instance is not None and group.name is not None
        yield from commands(group.typer_instance, (*before, group.name))


def test_every_verb_has_help_with_an_example() -> None:
    verbs = list(commands(cli.app))
    assert len(verbs) >= 30 and ("evaluate", "parity") in verbs
    for verb in verbs:
        shown = CliRunner().invoke(cli.app, [*verb, "--help"])
        assert shown.exit_code == 0 and "Example" in shown.stdout, verb


def test_bad_input_ends_with_one_message_and_exit_code_2(
    serial_run: Path, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "corpus")
    assert "no such file" in refused("concepts", "json", tmp_path / "none.json", *out)
    bad = tmp_path / "bad.json"
    bad.write_text('{"concept": "a", "sentences": ')
    assert "bad.json, line 1: not JSON" in refused("concepts", "json", bad, *out)
    bad.write_text('{"concept": "a", "sentences": {"positive": [], "negative": ["x"]}}')
    assert "no positives" in refused("concepts", "json", bad, *out)
    assert not (tmp_path / "corpus").exists()
    run = tmp_path / "run"
    assert "corpus.json: no such file" in refused("plan", run, "--corpus", tmp_path)
    assert "cannot be loaded" in refused("plan", run, "--corpus", corpus, "--model", tmp_path)
    assert "matches no module" in refused("plan", run, "--corpus", corpus, "--hookpoint", "nothing.*")
    assert not run.exists()
    assert "is another plan" in refused(
        "mine", serial_run, "--model", tiny_model, "--corpus", corpus, "--max-tokens", 60
    )
    assert "no such file" in refused("extract", run)
    assert "did you mean animal" in refused("experts", serial_run, "animl")
    assert "k is 51: expected 0 to 50" in refused("experts", serial_run, "animal", "-k", 51)
    assert "k is 51: expected 0 to 50" in refused("generate", serial_run, "--concept", "animal", "-k", 51)
    assert "--top-k is 577: expected 1 to 576" in refused("reduce", serial_run, "--top-k", 577)
    assert "did you mean animal" in refused("distribution", serial_run, "animl")
    assert "--keep is 'some': expected" in refused("plan", run, "--corpus", corpus, "--keep", "some")
    little = ("plan", run, "--model", tiny_model, "--corpus", corpus, "--max-tokens", 64, "--scoring-memory")
    assert "--scoring-memory is 90 MB, and scoring one unit" in refused(*little, "90MB")
    assert "expected bytes such as 800MB" in expertmine(*little, "much").stderr
    mine = ("mine", run, "--model", tiny_model, "--corpus", corpus, "--max-tokens", 64)
    assert "--top-k is 577" in refused(*mine, "--top-k", 577)
    assert not (run / "receipts").exists()
    assert "no GPU that Ray can see" in refused("extract", run, "--gpus-each", 1)
    assert "nothing to verify yet" in refused("verify", run)


def test_damage_is_reported_with_its_remedy(serial_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(serial_run, tmp_path / "run"))
    shard = next(path for path in sorted((run / "store.zarr" / "responses" / "max" / "c").rglob("*")) if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-100])
    message = refused("verify", run)
    receipt = run / "receipts" / "extract" / "00000.json"
    assert str(receipt) in message
    receipt.unlink()
    succeed("extract", run, "--executor", "serial")
    assert "match" in succeed("verify", run)


@pytest.mark.slow
def test_a_full_disk_ends_with_one_message_and_loses_nothing(
    serial_run: Path, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    plan = ("--model", tiny_model, "--corpus", corpus, "--max-tokens", 64)
    succeed("plan", run, *plan)
    # No file of more than 20 kB may be written: a shard of responses does not fit, a receipt does.
    limited = f"ulimit -f 20; exec {sys.executable} -m expertmine extract {run} --executor serial"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert re.search(r"store\.zarr/\S+: cannot be written \(File too large\)", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (run / "receipts" / "extract" / "00000.json").exists()
    succeed("mine", run, *plan, "--top-k", 50, "--extract-on", "serial", "--score-on", "serial")
    assert files(run / "experts") == files(serial_run / "experts")


@pytest.mark.slow
@pytest.mark.parametrize("stage, executor", [("extract", "ray"), ("score", "dask")])
def test_an_error_inside_a_worker_arrives_as_the_same_message(
    stage: str, executor: str, serial_run: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    on = ("--executor", executor, "--address", request.getfixturevalue(f"{executor}_address"))
    run = Path(shutil.copytree(serial_run, tmp_path / "run"))
    shutil.rmtree(run / "receipts" / stage)
    if stage == "extract":
        (run / "sentences" / "00000.parquet").write_bytes(b"PAR1")
        assert "00000.parquet: cannot be read" in refused(stage, run, *on, "--workers", 1)
    else:
        (next((run / "corpus").iterdir()) / "corpus.json").write_text("{}")
        assert "corpus.json: not a corpus" in refused(stage, run, *on)


def test_mining_a_grown_corpus_reports_new_sentences(
    serial_run: Path, tiny_model: Path, concept_files: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(serial_run, tmp_path / "run"))
    folder = Path(shutil.copytree(concept_files, tmp_path / "concepts"))
    animals, _ = animal_and_tool()
    sentences = {"positive": ["a pale red wall", "a deep blue wall"], "negative": animals.positives}
    (folder / "colour.json").write_text(json.dumps({"concept": "colour", "group": "test", "sentences": sentences}))
    succeed("concepts", "json", folder, "--out", tmp_path / "grown")
    on = ("--extract-on", "serial", "--score-on", "serial")
    mine = ("mine", run, "--model", tiny_model, "--corpus", tmp_path / "grown", "--max-tokens", 64, *on)
    done = expertmine(*mine)
    assert done.returncode == 0, done.stderr
    assert "2 to run" in done.stderr
    assert "72 others are already in the run" in done.stderr
    assert "extract: 2 of 2" in done.stderr
    assert "colour" in succeed("experts", run, "colour")
    again = expertmine(*mine)
    assert "is already planned: 74 sentences" in again.stderr
    assert "extract:" not in again.stderr
