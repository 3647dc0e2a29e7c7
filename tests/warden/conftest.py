from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.warden.client import Warden
from tests.capabilities import require
from tests.warden.boxes import started


@pytest.fixture(scope="module")
def warden() -> Iterator[Warden]:
    """One for the module: starting it is no part of what its tests are about."""
    require("root", "overlay", "user namespace")
    with started() as warden:
        yield warden


@pytest.fixture
def boxes(warden: Warden) -> Iterator[NsBox]:
    """Containers; what is left of them goes with the test."""
    made = NsBox(warden.connect, "/")
    yield made
    made.close()
