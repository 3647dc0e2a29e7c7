"""`--sandbox-keep`: where the files of failed tests are kept, outside everything that is cleaned up."""

from __future__ import annotations

from typing import Final

from pytest_nsbox.real import os

# Not the prefix of the warden's own directories, which the next session sweeps.
PREFIX: Final = "pytest-nsbox-kept-"


class Kept:
    """One directory for a session, below the temporary directory; made when the first test fails."""

    def __init__(self, tmpdir: str) -> None:
        self._tmpdir = tmpdir
        self._directory = ""
        self._places: dict[str, int] = {}

    def place(self, name: str) -> str:
        """A directory for the files of a test, not made yet; ``name`` is a relative path, another each time."""
        if not self._directory:
            self._directory = f"{self._tmpdir}/{PREFIX}{os.urandom(6).hex()}"
            os.mkdir(self._directory, 0o700)
        count = self._places[name] = self._places.get(name, 0) + 1
        return f"{self._directory}/{name}" + (f"-{count}" if count > 1 else "")
