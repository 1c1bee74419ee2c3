"""The package: examples in docstrings, and public names."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import expertmine_kernels


@pytest.mark.parametrize("module", [name for _, name, _ in pkgutil.iter_modules(expertmine_kernels.__path__)])
def test_the_examples_in_docstrings_are_right(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"expertmine_kernels.{module}"), extraglobs={"np": np})
    assert result.failed == 0


def test_public_names_exist() -> None:
    for name in expertmine_kernels.__all__:
        assert getattr(expertmine_kernels, name).__doc__
