"""Inner runs of pytest, each a process of its own, in real boxes."""

from __future__ import annotations

import pytest

from tests.acceptance.comparing import Runs


@pytest.fixture
def runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs suites plainly and in boxes."""
    return Runs(pytester, monkeypatch)
