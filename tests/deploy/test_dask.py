"""Dask over SSH and as services: behind certificates, with the files that a cluster's machines are given."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.made_runs import make_corpus, make_run
from support.repository import ROOT

from expertmine.mining.mine import run_score
from expertmine.runtime.cluster import Cluster

FOLDER = ROOT / "deploy" / "dask"
UNITS = sorted(FOLDER.glob("*.service"))
DASK = str(Path(sys.executable).with_name("dask"))


def certificates(folder: Path) -> Path:
    subprocess.run([FOLDER / "make_certificates.sh", folder], check=True, capture_output=True)
    return folder


def settings(folder: Path, keys: Path) -> Path:
    """Dask's settings as deployed, with the certificates elsewhere."""
    folder.mkdir()
    text = (FOLDER / "dask.yaml").read_text()
    (folder / "expertmine.yaml").write_text(text.replace("/etc/expertmine/tls", str(keys)))
    return folder


def test_certificates_are_of_one_authority_and_keys_are_private(tmp_path: Path) -> None:
    made = certificates(tmp_path / "tls")
    parts = ("scheduler", "worker", "client")
    for name in parts:
        subprocess.run(
            ["openssl", "verify", "-x509_strict", "-CAfile", made / "ca.pem", made / f"{name}.pem"],
            check=True,
            capture_output=True,
        )
    assert {path.name for path in made.iterdir()} == {f"{n}.{kind}" for n in ("ca", *parts) for kind in ("pem", "key")}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.glob("*.key")} == {0o600}
    again = subprocess.run([FOLDER / "make_certificates.sh", made], capture_output=True, text=True)
    assert again.returncode == 2
    assert "has an authority already" in again.stderr


def keys_of(settings: dict[str, Any], above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found = set()
    for key, value in settings.items():
        found |= keys_of(value, (*above, key)) if isinstance(value, dict) else {(*above, key)}
    return found


def test_every_setting_is_one_that_dask_knows() -> None:
    import distributed

    known = keys_of(yaml.safe_load((Path(distributed.__file__).parent / "distributed.yaml").read_text()))
    keys = keys_of(yaml.safe_load((FOLDER / "dask.yaml").read_text()))
    assert ("distributed", "comm", "require-encryption") in keys
    assert keys <= known


def exec_start(unit: Path) -> list[str]:
    """The command of a unit, with the settings of dask.env in it."""
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    text = (FOLDER / "dask.env").read_text()
    given = dict(re.findall(r"^(\w+)=(.*)$", text, re.M))
    return [
        re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], each)
        for each in shlex.split(parser["Service"]["ExecStart"])
    ]


def test_services_call_dask_with_options_it_knows() -> None:
    from distributed.cli.dask_scheduler import main as scheduler
    from distributed.cli.dask_worker import main as worker

    programs = {"scheduler": scheduler, "worker": worker}
    assert len(UNITS) == 2
    for unit in UNITS:
        path, kind, *options = exec_start(unit)
        assert path == "/opt/expertmine/bin/dask"
        context = programs[kind].make_context(kind, list(options), resilient_parsing=False)  # refuses what it knows not
        assert context.params["dashboard_address"].startswith("127.0.0.1:")
        assert context.params["host"] not in (None, "0.0.0.0")
        if kind == "worker":
            assert context.params["scheduler"].startswith("tls://")
            assert (context.params["nthreads"], context.params["n_workers"]) == (1, "-1")
        else:
            assert context.params["protocol"] == "tls"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_services_are_valid_for_systemd(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    # It looks for the program, too: ours is elsewhere.
    text = unit.read_text().replace("/opt/expertmine/bin/dask", DASK)
    (tmp_path / unit.name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / unit.name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / unit.name).write_text(text.replace("Restart=", "Restrat="))
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / unit.name], capture_output=True, text=True)
    assert "Restrat" in done.stderr


def test_over_ssh_prints_its_usage() -> None:
    for arguments in ([], ["10.0.0.1", "--", "true"], ["10.0.0.1", "10.0.0.2", "true", "false"]):
        done = subprocess.run([FOLDER / "over_ssh.sh", *arguments], capture_output=True, text=True)
        assert (done.returncode, done.stderr.split(":")[0]) == (2, "usage"), arguments


@pytest.mark.parametrize("name", ["over_ssh.sh", "make_certificates.sh"])
def test_scripts_are_clean(name: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (Debian: apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", FOLDER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# What is run over the cluster: scores a run, looks at the sockets of all that over_ssh.sh has started, and tries to get
# in without a certificate, with another authority's, and without encryption.
SCORE = """
import json, subprocess, sys
import dask, psutil
from expertmine.errors import UserError
from expertmine.runtime.dask import cluster

run, address, foreign = sys.argv[1:]

def listeners():
    family = psutil.Process().parent().children(recursive=True)
    return [c.laddr.ip for each in family for c in each.net_connections("inet") if c.status == "LISTEN"]

def refusal(address, *settings):
    dask.config.refresh(paths=settings)
    try:
        with cluster(address, 1):
            return "accepted"
    except UserError as error:
        return str(error)

subprocess.run([sys.executable, "-m", "expertmine", "score", run, "--address", address], check=True)
print(json.dumps({
    "listeners": listeners(),
    "none": refusal(address),
    "foreign": refusal(address, foreign),
    "unencrypted": refusal(address.replace("tls:", "tcp:")),
}))
"""
SSH = """#!/bin/sh
# Stands in for SSH: records the host it is called with, and runs the command here as a login shell would.
while [ "$1" = -o ]; do shift 2; done
echo "$1" >> "$ASKED"
shift
exec sh -c "$*"
"""


@pytest.mark.slow
def test_scoring_over_ssh_behind_certificates_gives_the_same_bytes(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts=400, concepts=4, positives=40, pool=60)
    make_run(tmp_path / "run", corpus, units=128, block_units=16, permutations=0, resamples=0)
    shutil.copytree(tmp_path / "run", tmp_path / "serial")
    run_score(tmp_path / "serial", "serial", Cluster())

    own = settings(tmp_path / "own", certificates(tmp_path / "tls"))
    foreign = settings(tmp_path / "foreign", certificates(tmp_path / "others"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(SSH)
    (tmp_path / "bin" / "ssh").chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "ASKED": str(tmp_path / "asked"),
        "DASK_CONFIG": str(own),
        "DASK": DASK,
        "PORT": str(port),
        "WORKERS": "1",
    }
    score = [sys.executable, "-c", SCORE, str(tmp_path / "run"), f"tls://127.0.0.1:{port}", str(foreign)]
    cluster = [str(FOLDER / "over_ssh.sh"), "127.0.0.1", "127.0.0.1", "someone@127.0.0.1", "--"]
    done = subprocess.run([*cluster, *score], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr

    found = json.loads(done.stdout.splitlines()[-1])
    stored = [path for path in (tmp_path / "serial" / "store.zarr").rglob("*") if path.is_file()]
    assert len(stored) > 10
    for path in stored:
        assert (tmp_path / "run" / path.relative_to(tmp_path / "serial")).read_bytes() == path.read_bytes(), path
    assert sorted((tmp_path / "asked").read_text().split()) == ["127.0.0.1", "someone@127.0.0.1"]
    # Of the scheduler, two nannies and two workers: each for its work, and all but the nannies for what may be watched.
    assert len(found["listeners"]) >= 8
    assert set(found["listeners"]) == {"127.0.0.1"}
    assert found["none"].startswith("no TLS certificate configured for 'tls://")
    assert found["foreign"].startswith("no Dask scheduler at 'tls://")
    assert found["unencrypted"].startswith("no Dask scheduler at 'tcp://")
    # Nobody stays behind.
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
