"""Runs the command line as users do, in its own process."""

from __future__ import annotations

import subprocess
import sys


def expertmine(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "expertmine", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def succeed(*arguments: object) -> str:
    done = expertmine(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: object) -> str:
    """Run a command that must refuse its input; return its message."""
    done = expertmine(*arguments)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert "expertmine: " in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Dask dashboard: ")]
    assert len(lines) == 1 or arguments[0] == "mine"
    return done.stderr
