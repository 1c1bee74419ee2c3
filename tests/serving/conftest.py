"""A real index, and servers on loopback that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.http_clients import (
    Client,
    Scribe,
    served,
)

from expertmine.index.experts import Experts


@pytest.fixture(scope="module")
def experts(mined: Path) -> Experts:
    return Experts.load(mined)


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


@pytest.fixture
def client(scribe: Scribe, experts: Experts) -> Iterator[Client]:
    with served(scribe, experts) as found:
        yield found


@pytest.fixture(scope="module")
def standing(experts: Experts) -> Iterator[Client]:
    """For tests that leave nothing behind."""
    with served(Scribe(), experts) as found:
        yield found
