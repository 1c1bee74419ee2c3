"""One job on one machine and on many: every byte of the store, the side tables and the index is the same, also when a
host is cut off while it is at work.

Hosts are network namespaces, where the machine allows them (see `hosts`). How soon a lost one is noticed is a setting
of Ray's and Dask's; the tests set less than the defaults.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from distributed import Security
from support.commands import succeed
from support.corpora import LabelledTexts, write_lists
from support.hosts import Host, hosts, why_not
from support.plans import request
from support.processes import ENVIRONMENT, free_port, kill_family, ray_nodes, scheduler

from expertmine.corpus.reader import Corpus
from expertmine.mining.extraction_memory import PARTITIONS_IN_FLIGHT
from expertmine.mining.growth import begin
from expertmine.mining.mine import run_all, run_extract
from expertmine.mining.planning import make_plan
from expertmine.run.open_run import open_run
from expertmine.runtime.cluster import Cluster
from expertmine.specs.plan import Stage

pytestmark = pytest.mark.slow

FOLDERS = ("store.zarr", "sentences", "null", "assessment", "selection", "experts")
"""What must be the same to the byte."""
STAGES: tuple[Stage, ...] = ("extract", "score", "assess")
TOP_K = 20

NOTICED_SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s",  # Dask takes no less
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
}
"""Environment of whoever watches: Ray's head, Dask's scheduler.

None of it waits for a sign of life from Python, which is late when a machine is busy: Ray's raylets answer, and the
operating systems under Dask.
"""


def plan_job(run: Path, model: Path, corpus: Path, rows: int, units: int, batch_tokens: int, **scoring: Any) -> None:
    """A run that is planned only, cut into small tasks: partitions of `rows` sentences, blocks of `units`."""
    opened = Corpus.open(corpus)
    plan, _ = make_plan(request(model, scoring=scoring, batch_tokens=batch_tokens), opened)
    layout = replace(plan.layout, partition_rows=rows, block_units=units, shard_units=units)
    begin(run, replace(plan, layout=layout), opened)


def mined_by_one_process(planned: Path, run: Path) -> Path:
    shutil.copytree(planned, run)
    run_all(run, ("serial", Cluster()), ("serial", Cluster()), TOP_K)
    return run


def assert_same_bytes(run: Path, done: Path, stages: Sequence[Stage] = STAGES) -> None:
    for folder in FOLDERS:
        theirs, ours = (
            {p.relative_to(each) for p in (each / folder).rglob("*") if p.is_file()} for each in (done, run)
        )
        assert ours == theirs
        for path in ours:
            assert (run / path).read_bytes() == (done / path).read_bytes(), path
    for stage in stages:
        kept, expected = (
            {path.name: (receipt["checksums"], receipt["fingerprint"]) for path, receipt in receipts(each, stage)}
            for each in (run, done)
        )
        assert kept == expected
        assert len(kept) == open_run(done).plan.tasks(stage)


def receipts(run: Path, stage: str) -> list[tuple[Path, dict[str, Any]]]:
    return [(path, json.loads(path.read_text())) for path in (run / "receipts" / stage).glob("[0-9]*.json")]


# Each takes a planned run and an empty folder, and returns a folder that holds the mined run.
Way = Callable[[Path, Path], Path]


def on_ray_and_dask_of_its_own(planned: Path, folder: Path) -> Path:
    run = Path(shutil.copytree(planned, folder / "run"))
    succeed("extract", run, "--workers", 2)
    succeed("score", run, "--workers", 2)
    succeed("reduce", run, "--top-k", TOP_K)
    return run


def on_ray_of_several_nodes(planned: Path, folder: Path) -> Path:
    run = Path(shutil.copytree(planned, folder / "run"))
    with ray_nodes() as (address, _), mock.patch.dict(os.environ, ENVIRONMENT):
        succeed("extract", run, "--address", address, "--workers", 2)
        succeed("score", run, "--executor", "ray", "--address", address, "--workers", 2)
    succeed("reduce", run, "--top-k", TOP_K)
    return run


def on_dask_over_tcp(planned: Path, folder: Path) -> Path:
    run, port = Path(shutil.copytree(planned, folder / "run")), free_port()
    succeed("extract", run, "--executor", "serial")
    with scheduler(port):
        succeed("score", run, "--address", f"tcp://127.0.0.1:{port}")
    succeed("reduce", run, "--top-k", TOP_K)
    return run


WAYS: dict[str, Way] = {
    "Ray and Dask of its own": on_ray_and_dask_of_its_own,
    "Ray of several nodes": on_ray_of_several_nodes,
    "Dask over TCP": on_dask_over_tcp,
}


@pytest.fixture(scope="module")
def small(tiny_model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A job of a dozen tasks per stage, mined by one process, and the same job planned only."""
    folder = tmp_path_factory.mktemp("small")
    plan_job(folder / "planned", tiny_model, tiny_corpus, rows=8, units=48, batch_tokens=256)
    return mined_by_one_process(folder / "planned", folder / "done"), folder / "planned"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_job_has_the_same_bytes_wherever_it_runs(way: Way, small: tuple[Path, Path], tmp_path: Path) -> None:
    done, planned = small
    assert_same_bytes(way(planned, tmp_path), done)


@pytest.fixture(scope="module")
def longer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that takes long enough to be disturbed: planned only, extracted by one process, and done by it."""
    folder = tmp_path_factory.mktemp("longer")
    texts = [f"the number {number} and its neighbour {number + 1} are known by name" for number in range(3000)]
    concepts = [
        LabelledTexts(f"every {step}th", "", "", texts[::step], [text for at, text in enumerate(texts) if at % step])
        for step in range(2, 12)
    ]
    write_lists(concepts, folder / "corpus", held_out_percent=20)
    plan_job(
        folder / "planned", tiny_model, folder / "corpus", rows=64, units=8, batch_tokens=64,
        permutations=20, null="own", resamples=20,
    )  # fmt: skip
    shutil.copytree(folder / "planned", folder / "extracted")
    run_extract(folder / "extracted", "serial", Cluster())
    mined_by_one_process(folder / "extracted", folder / "done")
    return folder


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Host]]:
    """Three hosts on one switch."""
    if reason := why_not():
        pytest.skip(reason)
    with hosts(3, tmp_path) as made:
        yield made


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without what other tests had Ray or Dask do."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DASK_"))}
    return {**kept, **NOTICED_SOON, **more}


Start = Callable[..., subprocess.Popen[str]]


@contextmanager
def started(environment: dict[str, str], folder: Path) -> Iterator[Start]:
    """While open, starts Python modules on hosts, with logs in a folder; all that they started ends with it."""
    with ExitStack() as families:

        def start(host: Host, name: str, module: str, *arguments: object) -> subprocess.Popen[str]:
            log = families.enter_context((folder / f"{name}.log").open("w"))
            command = [sys.executable, "-m", module, *arguments]
            process = host.start(*command, environment=environment, stdout=log, stderr=subprocess.STDOUT)
            families.callback(kill_family, process)
            return process

        yield start


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], log: Path, seconds: float = 120) -> None:
    """Give a process time to bring something about; it must not end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def finish_without(
    lost: Host, workers: list[Host], run: Path, stage: str, driver: subprocess.Popen[str], log: Path
) -> None:
    """Cut a host off once all of them have done some tasks, and let the driver come to its end without it."""

    def done_by(host: Host) -> int:
        return sum(receipt["worker"].startswith(f"{host.name}-") for _, receipt in receipts(run, stage))

    wait_until(lambda: all(map(done_by, workers)), driver, log)
    lost.cut_off()
    before = {host.name: done_by(host) for host in workers}
    assert driver.poll() is None, "it ended before it was disturbed"
    assert driver.wait(timeout=240) == 0, log.read_text()
    assert done_by(lost) <= before[lost.name] + PARTITIONS_IN_FLIGHT  # what it was at when it was cut off
    assert all(done_by(host) > before[host.name] for host in workers if host is not lost)


@pytest.mark.serial
def test_extraction_on_ray_goes_on_without_a_host_that_is_cut_off(
    longer: Path, machines: list[Host], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(longer / "planned", tmp_path / "run"))
    (tmp_path / "token").write_text(secrets.token_hex(32))
    environment = clean_environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    head, *workers = machines
    address = f"{head.address}:6379"
    with started(environment, tmp_path) as start:

        def start_nodes(nodes: list[Host], *options: object) -> None:
            own = ["start", "--block", "--object-store-memory", 10**8, *options, "--node-ip-address"]
            processes = [start(host, host.name, "ray.scripts.scripts", *own, host.address) for host in nodes]
            for host, process in zip(nodes, processes, strict=True):
                log = tmp_path / f"{host.name}.log"
                wait_until(partial(contains, log, "Ray runtime started"), process, log)

        start_nodes([head], "--head", "--port", 6379, "--num-cpus", 0, "--include-dashboard=false")
        start_nodes(workers, "--address", address, "--num-cpus", 1)
        driver = start(head, "driver", "expertmine", "extract", run, "--address", address, "--workers", 2)
        finish_without(workers[0], workers, run, "extract", driver, tmp_path / "driver.log")
    assert_same_bytes(run, longer / "extracted", ["extract"])


@pytest.mark.serial
def test_scoring_on_dask_goes_on_without_a_host_that_is_cut_off(
    longer: Path, machines: list[Host], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(longer / "extracted", tmp_path / "run"))
    head, *workers = machines
    address = f"tls://{head.address}:8786"
    with started(clean_environment(**certificates(tmp_path)), tmp_path) as start:
        options = ["--protocol", "tls", "--no-dashboard", "--host"]
        start(head, head.name, "distributed.cli.dask_scheduler", *options, head.address)
        for host in workers:
            start(host, host.name, "distributed.cli.dask_worker", address, "--nthreads", 1, *options, host.address)
        driver = start(head, "driver", "expertmine", "score", run, "--address", address)
        finish_without(workers[0], workers, run, "score", driver, tmp_path / "driver.log")
    succeed("reduce", run, "--top-k", TOP_K)
    assert_same_bytes(run, longer / "done")


def contains(path: Path, text: str) -> bool:
    return text in path.read_text()


def certificates(folder: Path) -> dict[str, str]:
    """One certificate for all of a Dask, and the environment in which all present it and require it."""
    made = Security.temporary()
    files = {"ca": made.tls_ca_file, "cert": made.tls_client_cert, "key": made.tls_client_key}
    for name, content in files.items():
        (folder / name).write_text(content)
    tls = "DASK_DISTRIBUTED__COMM__TLS__"
    environment = {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True", f"{tls}CA_FILE": str(folder / "ca")}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        environment |= {f"{tls}{role}__CERT": str(folder / "cert"), f"{tls}{role}__KEY": str(folder / "key")}
    return environment
