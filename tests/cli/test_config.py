"""Job files: their options, what overrides them, and what is refused in them."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.repository import ROOT

from expertmine.cli import app as cli
from expertmine.cli.job_file import MAX_BYTES, Setting, Vocabulary, read_job
from expertmine.cli.show import config as show_config
from expertmine.errors import UserError
from expertmine.runtime.cluster import Cluster

JOB = """\
# One job, on a laptop or on a cluster.
run: runs/mine
corpus: corpora/animals
model: gpt2
hookpoint: [mlp, attention]
scoring_memory: 2GB
workers: 2
extract:
  executor: serial
  gpus-each: 0.5
score:
  executor: ray
  address: auto
  workers: 4
generate:
  top-k: 7
"""

Run = Callable[..., str]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, and return what it prints."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["expertmine", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert stop.value.code in (0, None), err
        return out

    return run


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must be refused with exit code 2, and return its one message."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["expertmine", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (2, "")
        return err

    return run


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Write a job file."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "job.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def by_name(document: str) -> dict[str, tuple[Any, str]]:
    """Value and origin of each setting that `config --json` printed."""
    rows = json.loads(document)
    return {f"{row['section'] or ''}.{row['option']}".strip("."): (row["value"], row["origin"]) for row in rows}


def test_typed_options_override_the_file_and_the_file_overrides_defaults(printed: Run, job: Any) -> None:
    path = job(JOB)
    found = by_name(printed("config", "--config", path, "--model", "embedded", "--workers", 3, "--json"))
    assert found["model"] == ("embedded", "command line")
    assert found["run"] == ("runs/mine", f"{path}:2")
    assert found["hookpoint"] == (["mlp", "attention"], f"{path}:5")
    assert found["scoring-memory"] == (2_000_000_000, f"{path}:6")
    assert found["extract.executor"] == ("serial", f"{path}:9")
    assert found["gpus-each"] == (0.5, f"{path}:10")
    assert found["score.address"] == ("auto", f"{path}:13")
    assert found["max-tokens"] == (128, "default")
    assert found["generate.top-k"] == (7, f"{path}:16")
    assert found["top-k"] == (None, "default")  # of the index; generate has another option top-k


def test_typed_workers_of_all_stages_override_the_files_workers_of_one(printed: Run, job: Any) -> None:
    path = job(JOB)
    assert by_name(printed("config", "--config", path, "--json"))["score.workers"] == (4, f"{path}:14")
    typed = by_name(printed("config", "--config", path, "--workers", 3, "--json"))
    assert (typed["workers"], typed["score.workers"]) == ((3, "command line"), (None, "default"))


@pytest.mark.parametrize("before", [True, False])
def test_it_does_not_matter_where_the_job_file_is_named(before: bool, printed: Run, job: Any) -> None:
    named = ("--config", job(JOB))
    typed = ("elsewhere", "--workers", 3)
    arguments = (*named, *typed) if before else (*typed, *named)
    found = by_name(printed("config", *arguments, "--json"))
    assert found["run"] == ("elsewhere", "command line")
    assert (found["workers"], found["score.workers"]) == ((3, "command line"), (None, "default"))


class Called(Exception):
    """Says what a stage was called with."""


def test_each_stage_takes_its_options(monkeypatch: pytest.MonkeyPatch, job: Any) -> None:
    def tell(*given: object) -> None:
        raise Called(*given)

    monkeypatch.setattr("expertmine.mining.mine.run_extract", tell)
    monkeypatch.setattr("expertmine.mining.mine.run_score", tell)
    monkeypatch.setattr("expertmine.mining.mine.run_reduce", tell)
    path = job(JOB + "reduce: {top-k: 50}\n")

    def called(*arguments: object) -> tuple[Any, ...]:
        monkeypatch.setattr(sys, "argv", ["expertmine", *map(str, arguments), "--config", str(path)])
        with pytest.raises(Called) as call:
            cli.main()
        return call.value.args

    run = Path("runs/mine")
    assert called("extract") == (run, "serial", Cluster(None, 2, 0.5))
    assert called("extract", "other", "--executor", "ray") == (Path("other"), "ray", Cluster(None, 2, 0.5))
    assert called("score") == (run, "ray", Cluster("auto", 4, memory=2_000_000_000))
    assert called("reduce") == (run, 50)
    path.write_text("run: memory://bucket/run\nextract-on: serial\nray-address: auto\nextract-workers: 5\nworkers: 6\n")
    where, *others = called("extract")
    assert (str(where), others) == ("memory://bucket/run", ["serial", Cluster("auto", 5)])
    assert called("score")[1:] == ("dask", Cluster(None, 6))


def test_mine_runs_the_stages_where_the_sections_say(monkeypatch: pytest.MonkeyPatch, job: Any) -> None:
    def tell(*given: object) -> None:
        raise Called(*given)

    monkeypatch.setattr("expertmine.mining.mine.freeze_plan", lambda *_: (None, None))
    monkeypatch.setattr(cli.show_run, "bill", lambda *_: None)
    monkeypatch.setattr("expertmine.mining.mine.run_all", tell)

    def called(*arguments: object) -> tuple[Any, ...]:
        monkeypatch.setattr(sys, "argv", ["expertmine", "mine", *map(str, arguments)])
        with pytest.raises(Called) as call:
            cli.main()
        return call.value.args[1:3]

    extracting = ("serial", Cluster(None, 2, 0.5))
    memory = 2_000_000_000
    path = job(JOB)
    assert called("--config", path) == (extracting, ("ray", Cluster("auto", 4, memory=memory)))
    assert called("--config", path, "--workers", 3)[1] == ("ray", Cluster("auto", 3, memory=memory))
    assert called("--config", path, "--score-workers", 9)[1] == ("ray", Cluster("auto", 9, memory=memory))
    typed = ("run", "--corpus", "corpus", "--ray-address", "r", "--dask-address", "d")
    assert called(*typed) == (("ray", Cluster("r")), ("dask", Cluster("d")))
    shared = called(*typed[:-2], "--score-on", "ray")
    assert shared == (("ray", Cluster("r")), ("ray", Cluster("r")))  # by default one Ray for both


def test_a_run_from_a_job_file_equals_a_typed_one(
    printed: Run, job: Any, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    options = {
        "model": tiny_model,
        "corpus": tiny_corpus,
        "max-tokens": 64,
        "permutations": 0,
        "resamples": 0,
        "top-k": 20,
    }
    lines = [f"{name}: {value}" for name, value in options.items()]
    on = ["extract: {executor: serial}", "score: {executor: serial}"]
    path = job("\n".join([f"run: {tmp_path / 'filed'}", *lines, *on]))
    assert "expert index" in printed("mine", "--config", path)
    typed = [word for name, value in options.items() for word in (f"--{name}", value)]
    printed("mine", tmp_path / "typed", *typed, "--extract-on", "serial", "--score-on", "serial")
    folders = [tmp_path / name for name in ("filed", "typed")]
    assert (folders[0] / "plan.json").read_bytes() == (folders[1] / "plan.json").read_bytes()
    indexes = [{each.name: each.read_bytes() for each in (run / "experts").iterdir()} for run in folders]
    assert indexes[0] == indexes[1] and "experts.parquet" in indexes[0]
    # Nothing is kept of a job file: the plan is what a run is made of.
    assert {each.name for each in folders[0].iterdir()} == {each.name for each in folders[1].iterdir()}


def test_config_prints_an_equivalent_job_file(printed: Run, job: Any) -> None:
    path = job(JOB + '  prompt: "a\\tcat: #1"\nserve: {max-body: 64kB, port: 0}\nevaluate-concept: {k: [1, 2]}\n')
    before = by_name(printed("config", "--config", path, "--json"))
    path.write_text(printed("config", "--config", path, "--yaml"))
    after = by_name(printed("config", "--config", path, "--json"))
    assert {name: value for name, (value, _) in before.items()} == {name: value for name, (value, _) in after.items()}
    assert after["generate.prompt"][0] == "a\tcat: #1"
    assert after["evaluate-concept.k"][0] == [1, 2]
    assert after["serve.max-body"][0] == 64_000


VALUES = st.one_of(st.text(), st.lists(st.text()).filter(bool))


@given(value=VALUES)
@example(value="~")
@example(value="a # b\x85\ufeff\x7f\u2028")
@example(value="x" * 5000 + " y" * 5000)
@settings(max_examples=150, deadline=None)
def test_any_text_survives_being_printed_as_yaml(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    if "://" in str(value):
        return  # may be printed without its password
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        show_config.as_yaml([Setting("generate", "prompt", value, "a\nfile:3")])
    path = tmp_path_factory.getbasetemp() / "printed.yaml"
    path.write_bytes(shown.getvalue().encode())
    found = read_job(path, Vocabulary({}, {"generate": {"prompt": "prompt"}})).settings["prompt"]
    assert found.value == (tuple(value) if isinstance(value, list) else value)


def test_the_table_names_every_option_of_mine_with_its_origin(printed: Run, job: Any) -> None:
    path = job(JOB)
    lines = [line.split() for line in printed("config", "--config", path, "--force").splitlines()]
    rows = {line[0]: line for line in lines}
    assert rows["model"] == ["model", "gpt2", f"{path}:4"]
    assert rows["force"] == ["force", "true", "command", "line"]
    assert rows["resamples"] == ["resamples", "(100)", "default"]
    assert {"run", "corpus", "autocast", "extract.executor", "score.workers", "top-k"} <= rows.keys()


def test_no_password_is_printed(printed: Run, refused: Run, job: Any) -> None:
    for form in ((), ("--json",), ("--yaml",)):
        shown = printed("config", "--dask-address", "tls://me:secret@host:8786", *form)
        assert "secret" not in shown and "tls://***@host:8786" in shown
    assert "secret" not in refused("config", "--config", job("corpus: s3://key:secret@bucket/corpus\n"))
    assert "secret" not in refused("config", "--config", job("workers: tls://me:secret@host\n"))
    assert "secret" not in refused("config", "--config", job("model: 'secret\n"))


@pytest.mark.parametrize("content, expected", [
    ("model: gpt2\nmodle: x\n", "line 2: unknown key 'modle'; did you mean model"),
    ("extract:\n  worker: 3\n", "line 2: unknown key 'worker' in the section extract; did you mean workers"),
    ("extrct:\n  workers: 2\n", "line 1: unknown key 'extrct'; did you mean the section extract"),
    ("executor: ray\n", "line 1: unknown key 'executor'; did you mean executor, in a section (extract, "),
    ("extract:\n  model: x\n", "line 2: unknown key 'model' in the section extract; did you mean model, outside of"),
    ("zzzzz: 1\n", "line 1: unknown key 'zzzzz'; expected run, corpus, model, "),
    ("config: other.yaml\n", "line 1: unknown key 'config'"),
    ("model: a\nhookpoint: mlp\nmodel: b\n", "line 3: model occurs twice, first in line 1"),
    ("max_tokens: 3\nmax-tokens: 4\n", "line 2: max-tokens occurs twice, first in line 1"),
    ("extract-on: ray\nextract:\n  executor: serial\n", "line 3: extract.executor is the same option as extract-on"),
    ("gpus-each: 1\nextract:\n  gpus-each: 1\n", "line 3: extract.gpus-each is the same option as gpus-each in line 1"),
    ("run: r\nworkers: two\n", "line 2: workers is 'two': Input should be a valid integer"),
    ("top-k: 0\n", "line 1: top-k is '0': Input should be greater than or equal to 1"),
    ("force: maybe\n", "line 1: force is 'maybe': expected true or false"),
    ("pooling: [max, mean]\n", "line 1: pooling is [max, mean]: expected one value, found a list"),
    ("extract:\n  executor: dask\n", "line 2: extract.executor is 'dask': 'dask' is not one of 'ray', 'serial'"),
    ("score:\n  scoring-memory: much\n", "line 2: score.scoring-memory is 'much': 'much': expected bytes such as"),
    ("generate:\n  seed: -1\n", "line 2: generate.seed is '-1': Input should be greater than or equal to 0"),
    ("corpus: bad://x/y\n", "line 1: corpus: bad://x/y: "),
    ("model:\n", "line 1: model has no value"),
    ("hookpoint: [mlp, ~]\n", "line 1: expected only plain values in a list"),
    ("model:\n  a: 3\n", "line 1: model has options below it"),
    ("extract:\n  workers:\n    a: 3\n", "line 3: an option in a section has options below it"),
    ("extract: ray\n", "line 1: extract is a section; expected options below it"),
    ("- model\n", "line 1: expected options as `name: value`"),
    ("? [a, b]\n: c\n", "line 1: expected the name of an option"),
    ("model: a\n---\nmodel: b\n", "several documents"),
    ("model: gpt2\n\thookpoint: x\n", "line 2: not YAML: found character '\\t'"),
    ("hookpoint: *.mlp.c_fc\n", "line 1: not YAML: expected alphabetic or numeric character, but found '.'; quote"),
    ("model: a\x01b\n", "not YAML: it has characters that are not valid text"),
    (b"model: a\nrun: \xff\n", "line 2: not UTF-8 text"),
])  # fmt: skip
def test_errors_in_a_job_file_are_reported_with_their_lines(
    content: str | bytes, expected: str, refused: Run, job: Any
) -> None:
    path = job(content)
    message = refused("mine", "--config", path)
    assert message.startswith(f"expertmine: {path}") and expected in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("content, expected", [
    ("model: !!python/object/apply:os.mkdir ['{there}']\n", "the tag !!python/object/apply:os.mkdir"),
    ("model: !!python/name:os.system\n", "the tag !!python/name:os.system"),
    ("hookpoint: [mlp, !env HOME]\n", "the tag !env"),
    ("!!str model: gpt2\n", "the tag !!str"),
    ("!job {model: gpt2}\n", "the tag !job"),
    ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "line 1: &a: anchors and aliases are not allowed"),
    ("model: gpt2\nrevision: *m\n", "line 2: *m: anchors and aliases are not allowed"),
    ("model: " + "[" * 30_000, "expected only plain values in a list"),
    ("model: " + "{" * 30_000, "expected the name of an option"),
    ("# " + "x" * MAX_BYTES, "more than 65,536 bytes"),
])  # fmt: skip
def test_yaml_that_is_more_than_options_is_refused(
    content: str, expected: str, refused: Run, job: Any, tmp_path: Path
) -> None:
    there = tmp_path / "made"
    assert expected in refused("plan", "--config", job(content.replace("{there}", str(there))))
    assert not there.exists()


def test_the_tag_above_would_have_done_harm(tmp_path: Path) -> None:
    yaml.unsafe_load(f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    assert (tmp_path / "made").is_dir()


def test_files_that_cannot_be_read(refused: Run, tmp_path: Path) -> None:
    assert "no such file; --config takes a job file" in refused("mine", "--config", tmp_path / "none.yaml")
    assert "cannot be read (Is a directory)" in refused("mine", "--config", tmp_path)
    assert "more than 65,536 bytes" in refused("mine", "--config", "/dev/zero")


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "extract:\n  # workers: 3\n", "extract: {}\n"])
def test_a_job_file_may_be_empty(content: str, printed: Run, job: Any) -> None:
    found = by_name(printed("config", "--config", job(content), "--json"))
    assert {origin for _, origin in found.values()} == {"default"}


def test_values_are_always_text(printed: Run, job: Any) -> None:
    """YAML would make a number of 0123, a date of 2024-01-01 and false of no; a revision is none of these."""
    for text in ("0123", "2024-01-01", "no", "1e3", "'~'"):
        found = by_name(printed("config", "--config", job(f"revision: {text}\n"), "--json"))
        assert found["revision"][0] == text.strip("'")
    for text, truth in (("yes", True), ("false", False), ("On", True)):
        assert by_name(printed("config", "--config", job(f"force: {text}\n"), "--json"))["force"][0] is truth


def test_every_command_with_config_has_it_in_its_help(printed: Run) -> None:
    commands = ("units", "plan", "extract", "score", "reduce", "mine", "generate", "serve", "config")
    for words in (*((name,) for name in commands), ("evaluate", "concept"), ("evaluate", "parity")):
        assert "--config" in printed(*words, "--help"), words


def test_options_of_other_commands_are_checked_too(refused: Run, job: Any) -> None:
    path = job("serve:\n  port: 70000\n")
    assert f"{path}, line 2: serve.port is '70000'" in refused("reduce", "run", "--config", path)


def test_the_job_file_of_the_documentation_is_valid(printed: Run, job: Any) -> None:
    page = ROOT / "docs" / "configuration.md"
    content = page.read_text().split("```yaml\n")[1].split("```")[0].replace("s3://", "memory://")
    path = job(content)
    found = by_name(printed("config", "--config", path, "--json"))
    of_the_file = {name: value for name, (value, origin) in found.items() if origin.startswith(str(path))}
    assert of_the_file["run"] == "memory://bucket/runs/animals"
    assert of_the_file["score.workers"] == 64 and of_the_file["top-k"] == 1000
    assert len(of_the_file) == sum(": " in line for line in content.splitlines())


def test_a_key_may_be_read_without_any_command(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("a: 1\npart: {b_c: [2, 3]}\n")
    read = read_job(path, Vocabulary({"a": "first"}, {"part": {"b-c": "second"}}))
    assert [(name, entry.key, entry.value, entry.line) for name, entry in read.settings.items()] == [
        ("first", "a", "1", 1),
        ("second", "part.b-c", ("2", "3"), 2),
    ]
    assert str(read.error(read.settings["second"], " is wrong")) == f"{path}, line 2: part.b-c is wrong"
    with pytest.raises(UserError, match="line 1: unknown key 'a'"):
        read_job(path, Vocabulary({"b": "b"}, {}))
