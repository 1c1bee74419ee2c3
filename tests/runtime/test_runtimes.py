"""Ray and Dask as we start them: what they listen on, which addresses they take, and when they make workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.workers import new_scripted

from expertmine.errors import UserError
from expertmine.runtime.cluster import Cluster

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


@pytest.mark.slow
def test_actors_without_room_keep_nobody_waiting(ray_address: str, tmp_path: Path) -> None:
    from expertmine.runtime import ray

    with ray.cluster(ray_address):
        found = ray.RayExecutor(actors=ray.cpus() + 2).run(new_scripted(tmp_path, {}), range(8))
        assert sorted(found) == [10 * task for task in range(8)]


def test_each_call_makes_its_own_worker_on_a_lasting_dask_cluster(tmp_path: Path) -> None:
    from expertmine.runtime import dask

    def new_reader() -> Callable[[int], str]:
        text = (tmp_path / "facts").read_text()
        return lambda task: text

    with dask.opened(Cluster(workers=1), tasks=2) as executor:
        for text in ("first", "second"):
            (tmp_path / "facts").write_text(text)
            assert list(executor.run(new_reader, range(2))) == [text, text]


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
