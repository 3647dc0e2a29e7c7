"""What a box wrote, however deep: told, and removed. A directory can lie deeper than any path names it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_nsbox import BoxFailed
from pytest_nsbox.kernel import files
from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden import changes
from pytest_nsbox.warden.changes import are_devices_as_begun, list_devices
from pytest_nsbox.warden.client import Warden
from tests.warden.boxes import run, run_in, started

pytestmark = pytest.mark.keeps_running("boxes of the module's warden")

# Seconds: longer than kernels before 6.13 take for the same moment in the times of files.
A_MOMENT = 0.03
LEVELS = 1500
GIVEN = 300
LONG = "a-name-of-some-length"


def make_deep(top: Path, name: str, levels: int = LEVELS) -> None:
    """Make nested directories below `top`, with a file in the last one."""
    top.mkdir()
    home = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
    os.chdir(top)
    for _ in range(levels):
        os.mkdir(name)
        os.chdir(name)
    Path("file").touch()
    os.fchdir(home)
    os.close(home)


def change_deep(top: Path, name: str) -> None:
    os.chdir(top)
    for _ in range(GIVEN):
        os.chdir(name)
    Path("file").unlink()
    Path("new").touch()


@pytest.fixture
def given(tmp_path: Path) -> Iterator[Path]:
    """Something deep of the host's."""
    make_deep(tmp_path / "given", LONG, GIVEN)
    yield tmp_path / "given"
    files.remove_tree(str(tmp_path / "given"))


def test_what_is_deeper_than_any_path_is_told_and_removed(given: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"

    def change() -> None:
        make_deep(made, LONG)
        change_deep(given, LONG)

    with started() as warden:
        box = warden.acquire(Spec())
        run_in(box, change)
        found = box.changes()
        assert box.release().files_changed == len(found)
        # The next box of the same spec begins with none of it.
        assert run(warden, made.exists) is False
    assert {kind for kind, path in found if path.startswith(str(made))} == {"A"}
    assert len(found) == 1 + LEVELS + 1 + 2
    assert ("A", str(made) + f"/{LONG}" * LEVELS + "/file") in found
    assert [change for change in found if change[1].startswith(str(given))] == [
        ("D", str(given) + f"/{LONG}" * GIVEN + "/file"),
        ("A", str(given) + f"/{LONG}" * GIVEN + "/new"),
    ]


def test_a_container_can_write_as_deep(warden: Warden) -> None:
    boxes = NsBox(warden.connect, "/")
    assert len(boxes.run(["mkdir", "-p", "/" + "d/" * LEVELS], check=True).changes) == LEVELS
    boxes.close()


def test_more_text_than_anybody_can_want_is_an_error_and_not_the_end_of_the_warden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "_MOST", 1000)
    with pytest.raises(BoxFailed, match="more than 0 MiB of text: too much to list"):
        changes.in_order([("A", "/" + "x" * 600), ("A", "/" + "y" * 600)])


def test_a_way_down_leads_up_again_when_somebody_moved_it(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    way = files.Descent(str(tmp_path))
    try:
        way.enter("a")
        way.enter("b")
        (tmp_path / "a/b").rename(tmp_path / "b")
        assert way.leave() == "b"
        assert os.path.samestat(os.fstat(way.fd), os.stat(tmp_path / "a"))
        assert way.names == ["a"]
    finally:
        way.close()


def test_what_cannot_be_removed_is_named_and_everything_else_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/stays/below", "b/goes"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    rmdir = os.rmdir

    def refuse(name: str, *, dir_fd: int | None = None) -> None:
        if name == "below":
            raise OSError(errno.EBUSY, "mounted on")
        rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(KernelError, match=f"^remove {tmp_path}/tree/a/stays/below: Device or resource busy$"):
        files.remove_tree(str(tmp_path / "tree"))
    assert [path.name for path in tmp_path.rglob("*")] == ["tree", "a", "stays", "below"]


def test_a_dev_is_as_it_was_listed_while_files_come_and_go_in_its_directories(tmp_path: Path) -> None:
    for name in ("shm", "pts"):
        (tmp_path / name).mkdir()
    (tmp_path / "null").touch()
    devices = os.open(tmp_path, os.O_RDONLY)
    try:
        begun = list_devices(devices)
        assert are_devices_as_begun(devices, begun)
        time.sleep(A_MOMENT)
        (tmp_path / "shm/gone").touch()
        assert not are_devices_as_begun(devices, begun)
        (tmp_path / "shm/gone").unlink()
        os.utime(tmp_path / "shm")
        assert are_devices_as_begun(devices, begun)
        assert begun == list_devices(devices)
    finally:
        os.close(devices)


@pytest.mark.parametrize(
    "change",
    [
        lambda at: (at / "shm/file").touch(),
        lambda at: (at / "shm").chmod(0o700),
        lambda at: os.setxattr(at / "shm", "user.x", b"x"),
        lambda at: (at / "null").chmod(0o600),
        lambda at: (at / "null").unlink(),
        lambda at: (at / "new").touch(),
        lambda at: (at / "new").mkdir(),
    ],
    ids=["file", "mode of a directory", "attribute", "mode", "gone", "new file", "new directory"],
)
def test_a_dev_that_is_not_as_it_was_listed(change: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "shm").mkdir()
    (tmp_path / "null").touch()
    devices = os.open(tmp_path, os.O_RDONLY)
    try:
        begun = list_devices(devices)
        time.sleep(A_MOMENT)
        change(tmp_path)
        assert not are_devices_as_begun(devices, begun)
    finally:
        os.close(devices)
