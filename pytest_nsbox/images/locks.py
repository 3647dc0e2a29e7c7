"""Who may change the store, and which of its images are in use: locks that end with the process that holds them."""

from __future__ import annotations

from filelock import FileLock


def changing(store: str) -> FileLock:
    """Return the lock of the store's names and of what is moved into or out of it; held for moments."""
    return FileLock(f"{store}/lock", mode=0o600)


def importing(store: str, key: str) -> FileLock:
    """Return the lock of one import: others that want the same wait for it and find the result."""
    return FileLock(f"{store}/locks/{key}", mode=0o600)
