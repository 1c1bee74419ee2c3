"""Ray and Dask as we start them: what they listen on, and what becomes of tasks whose process dies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.workers import new_squarer

from expertmine.errors import UserError
from expertmine.runtime import serial
from expertmine.runtime.failures import Failed

LISTENERS = """
import psutil
def listeners():
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sorted({c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == "LISTEN"})
"""
RAY = """
from expertmine.runtime import ray
with ray.cluster(None, cpus=1):
    import os
    print(os.environ["RAY_AUTH_MODE"], *listeners())
"""
DASK = """
if __name__ == "__main__":
    from expertmine.runtime import dask
    with dask.cluster(None, workers=1):
        print("none", *listeners())
"""


@pytest.mark.slow
@pytest.mark.parametrize("code, mode", [(RAY, "token"), (DASK, "none")], ids=["ray", "dask"])
def test_clusters_of_our_own_listen_on_loopback_alone(code: str, mode: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LISTENERS + code)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    found, *addresses = done.stdout.split()
    assert found == mode
    assert addresses
    assert {address.removeprefix("::ffff:") for address in addresses} <= {"127.0.0.1", "::1"}


def test_one_process_makes_its_worker_only_for_a_task(tmp_path: Path) -> None:
    def never() -> Callable[[int], int]:
        raise AssertionError

    assert list(serial.run(never, [])) == []
    assert list(serial.run(new_squarer(tmp_path), [1, 2])) == [1, 4]


def test_a_dask_worker_that_dies_costs_nothing(tmp_path: Path) -> None:
    from expertmine.runtime import dask

    with dask.cluster(None, workers=2) as client:
        assert sorted(dask.run(client, new_squarer(tmp_path), range(8))) == [n * n for n in range(8)]
        assert (tmp_path / "killed").exists()
        found = list(dask.run(client, new_squarer(tmp_path), [12, 13, 14]))
        assert Failed(13, "thirteen is refused") in found
        assert {144, 196} < {*found}


@pytest.mark.slow
def test_actors_without_room_keep_nobody_waiting(tmp_path: Path) -> None:
    from expertmine.runtime import ray

    (tmp_path / "killed").touch()
    with ray.cluster(None, cpus=2):
        assert sorted(ray.run(new_squarer(tmp_path), range(8), actors=5, cpus_each=1, gpus_each=0)) == [
            n * n for n in range(8)
        ]


def test_each_call_makes_its_own_worker_on_a_lasting_dask_cluster(tmp_path: Path) -> None:
    from expertmine.runtime import dask

    def new_reader() -> Callable[[int], str]:
        text = (tmp_path / "facts").read_text()
        return lambda task: text

    with dask.cluster(None, workers=1) as client:
        for text in ("first", "second"):
            (tmp_path / "facts").write_text(text)
            assert list(dask.run(client, new_reader, range(2))) == [text, text]


@pytest.mark.parametrize("address", ["foo", "http://127.0.0.1:1", "tcp://127.0.0.1:x"])
def test_addresses_that_lead_nowhere_are_refused(address: str) -> None:
    from expertmine.runtime import dask

    with pytest.raises(UserError, match="no Dask scheduler at"), dask.cluster(address, workers=1):
        pass


def test_ray_imported_too_early_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import ray\nfrom expertmine.runtime import ray as ours\nwith ours.cluster(None): pass\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, env=environment)
    assert "set RAY_AUTH_MODE=token" in done.stderr


@pytest.mark.slow
def test_a_ray_actor_that_dies_costs_nothing(tmp_path: Path) -> None:
    from expertmine.runtime import ray

    with ray.cluster(None, cpus=2):
        found = ray.run(new_squarer(tmp_path), range(8), actors=2, cpus_each=1, gpus_each=0)
        assert sorted(found) == [n * n for n in range(8)]
        assert (tmp_path / "killed").exists()
        found = list(ray.run(new_squarer(tmp_path), [12, 13, 14], actors=1, cpus_each=1, gpus_each=0))
        assert sorted(found, key=str) == [144, 196, Failed(13, "thirteen is refused")]
