"""Inner runs of pytest, each a process of its own, in real boxes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.acceptance.comparing import Runs


@pytest.fixture
def runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs suites plainly and in boxes."""
    return Runs(pytester, monkeypatch)


@pytest.fixture
def tmpdir_for_all() -> Iterator[str]:
    """A directory on the disk that everyone may write to: a tmpfs carries no layers of a user before Linux 6.6."""
    place = f"/var/tmp/nsbox-rootless-{os.getpid()}"
    os.mkdir(place)
    os.chmod(place, 0o1777)
    yield place
    shutil.rmtree(f"{place}/cache", ignore_errors=True)
    # Empty: the warden has removed what was its own.
    os.rmdir(place)
