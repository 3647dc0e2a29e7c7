"""Memory of this process: huge pages. Source: madvise(2)."""

from __future__ import annotations

from pytest_nsbox.kernel import libc

_MADV_COLLAPSE = 25  # Linux 6.1


def collapse(address: int, length: int) -> None:
    """Put the huge pages that lie wholly in [address, address + length) in the place of small ones, now."""
    libc.call("madvise", f"{address:#x}+{length}", address, length, _MADV_COLLAPSE)
