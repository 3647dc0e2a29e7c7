from __future__ import annotations

from pathlib import Path

import pytest

from pytest_nsbox.images.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of this test's own."""
    return Store(str(tmp_path / "store"))
