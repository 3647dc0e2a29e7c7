"""Boxes whose root is the host's: what the warden, in a user namespace of its own, cannot remove is removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_nsbox.kernel import libc
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.warden.client import Warden
from pytest_nsbox.warden.doors import Doors
from pytest_nsbox.warden.rootless import Outsider
from tests.warden.boxes import config, in_a_process, run

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")

_UNAME_26 = 0x0020000  # the kernel calls itself 2.6, so that nobody tries to idmap layers. Source: personality(2)


def test_nothing_of_a_session_stays(tmp_path: Path) -> None:
    def play() -> tuple[list[str], tuple[str, ...]]:
        libc.call("personality", "UNAME26", _UNAME_26)
        warden = Warden.start(config(tmpdir=str(tmp_path)))
        outside = run(warden, lambda: Path("/proc/self/uid_map").read_text().split())
        return outside, warden.close()

    assert in_a_process(play) == (["0", "0", "4294967294"], ())
    assert os.listdir(tmp_path) == []


def test_where_the_maps_cannot_be_written_that_is_told_and_the_directory_goes(tmp_path: Path) -> None:
    directory = tmp_path / "session"

    class Without(Doors):
        @staticmethod
        def unshare(flags: int) -> None:
            """Stay where we are; our maps were written long ago."""

    def play() -> str:
        directory.mkdir()
        outsider = Outsider(Without(), directory.rmdir)
        with pytest.raises(BoxFailed) as told:
            outsider.enter()
        outsider.remove()
        return str(told.value)

    assert in_a_process(play).endswith("Operation not permitted; pytest --sandbox-doctor tells the fix")
    assert not directory.exists()
