"""Runs the command line: in the test's own process, which imports once, or as users start it, in its own process."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TypeAlias
from unittest import mock

import torch

from expertmine.cli import app
from expertmine.telemetry.logs import logger

Finished: TypeAlias = "subprocess.CompletedProcess[str]"


def expertmine(*arguments: object) -> Finished:
    """Run a command in this process; exit code, output and messages are the same as in a separate process.

    An exception that the command line does not catch is raised here.
    """
    command = ["expertmine", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with _restored_process(), mock.patch.object(sys, "argv", command), redirect_stdout(out), redirect_stderr(err):
        try:
            app.main()
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(command, code if isinstance(code, int) else int(bool(code)),
                                       out.getvalue(), err.getvalue())  # fmt: skip


@contextmanager
def _restored_process() -> Iterator[None]:
    """Have the environment, the log and the number of threads be as they were before a command set them."""
    handlers, level, threads = list(logger.handlers), logger.level, torch.get_num_threads()
    with mock.patch.dict(os.environ):
        try:
            yield
        finally:
            for handler in logger.handlers:
                if handler not in handlers:
                    handler.close()
            logger.handlers[:] = handlers
            logger.setLevel(level)
            torch.set_num_threads(threads)


def expertmine_process(*arguments: object, timeout: float = 300) -> Finished:
    """Run a command in a separate process, for tests of the process itself: its exit code, its log on stderr."""
    command = [sys.executable, "-m", "expertmine", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def succeed(*arguments: object) -> str:
    """The standard output of a command that must succeed."""
    done = expertmine(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: object) -> str:
    """Run a command that must refuse its input; return its message."""
    done = expertmine(*arguments)
    assert_refused(done, lines=None if arguments[0] == "mine" else 1)
    return done.stderr


def assert_refused(done: Finished, lines: int | None = 1) -> None:
    """That bad input ended a command: exit code 2, no output, a message of so many lines (None: any), no traceback."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert "expertmine: " in done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("Dask dashboard: ")]
    assert lines is None or len(said) == lines, done.stderr
