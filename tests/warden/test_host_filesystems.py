"""What is mounted on the host, as a box shows it. Each test mounts in a mount namespace of its own."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox.kernel import mount, namespaces
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.mounts import Tmpfs, Volume
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden.doors import Doors
from pytest_nsbox.warden.session import Session
from tests.warden.boxes import in_a_process, run, run_for_usage, started

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")


def with_own_mounts(function: Callable[[], Any]) -> Any:
    def play() -> Any:
        namespaces.unshare(namespaces.NEWNS)
        mount.make_private("/")
        return function()

    return in_a_process(play)


def mount_at(
    place: Path, fstype: str = "tmpfs", options: tuple[tuple[str, str | None], ...] = (), attributes: int = 0
) -> None:
    place.mkdir(parents=True, exist_ok=True)
    fd = mount.new_mount(fstype, options, attributes)
    mount.attach(fd, str(place))
    os.close(fd)


def bind(source: Path, target: Path, attributes: int = 0) -> None:
    fd = mount.clone_tree(str(source))
    mount.set_attributes(fd, attributes)
    mount.attach(fd, str(target))
    os.close(fd)


def write(path: Path) -> int:
    try:
        path.write_text("box")
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.needs("shifted tmpfs")
def test_other_filesystems_are_copied_on_write_as_well(tmp_path: Path) -> None:
    place = tmp_path / "a dir, with: odd\\characters"
    inner = place / "inner"

    def play() -> None:
        mount_at(place)
        (place / "file").write_text("host")
        mount_at(inner)
        (inner / "file").write_text("host")

        def change() -> tuple[str, str]:
            before = (place / "file").read_text() + (inner / "file").read_text()
            (place / "file").write_text("box")
            (inner / "file").write_text("box")
            (inner / "new").write_text("box")
            return before, (place / "file").read_text() + (inner / "file").read_text()

        with started() as warden:
            for _ in range(3):
                result, released = run_for_usage(warden, change)
                assert result == ("hosthost", "boxbox")
                assert released.files_changed == 3
        assert (place / "file").read_text() + (inner / "file").read_text() == "hosthost"

    with_own_mounts(play)


def test_a_readonly_filesystem_stays_so(tmp_path: Path) -> None:
    def play() -> None:
        mount_at(tmp_path / "ro", attributes=mount.RDONLY)
        with started() as warden:
            assert run(warden, lambda: write(tmp_path / "ro" / "x")) == errno.EROFS

    with_own_mounts(play)


def test_a_file_that_is_a_mount_is_shown(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("source")
    (tmp_path / "target").write_text("target")

    def play() -> None:
        bind(tmp_path / "source", tmp_path / "target")
        with started() as warden:
            assert run(warden, (tmp_path / "target").read_text) == "source"
            assert run(warden, lambda: write(tmp_path / "target")) == errno.EROFS
        assert (tmp_path / "source").read_text() == "source"

    with_own_mounts(play)


@pytest.mark.parametrize("when", ["before the session", "before the first box", "between boxes"])
def test_what_is_deleted_after_it_was_mounted_stays_in_boxes(tmp_path: Path, when: str) -> None:
    """Its mount goes on showing it on the host: as when an editor replaced a file that an engine had bound into the
    container that pytest runs in, or when a server whose socket is bound there ended.
    """
    sources, place = tmp_path / "sources", tmp_path / "place"
    for directory in (sources, place):
        for name in ("writable", "readonly"):
            (directory / name).mkdir(parents=True)
        (directory / "file").touch()
    (sources / "file").write_text("bound")
    os.chmod(sources / "file", 0o640)
    os.chown(sources / "file", 7, 8)
    (place / "socket").touch()

    def delete() -> None:
        (sources / "file").unlink()
        (sources / "socket").unlink()
        (sources / "readonly").rmdir()
        (sources / "writable").rmdir()

    def seen() -> tuple[object, ...]:
        at = os.stat(place / "file")
        shown = (place / "file").read_text(), at.st_mode & 0o777, at.st_uid, at.st_gid
        return *shown, write(place / "file"), write(place / "readonly" / "x"), os.listdir(place / "writable")

    def play() -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(sources / "socket"))
            listening.listen()
            for name in ("file", "socket", "writable"):
                bind(sources / name, place / name)
            bind(sources / "readonly", place / "readonly", mount.RDONLY)
            if when == "before the session":
                delete()
            with started() as warden:
                if when == "before the first box":
                    delete()
                for turn in range(2):
                    for spec in ({}, {"privileged": True}):
                        assert run(warden, seen, **spec) == ("bound", 0o640, 7, 8, errno.EROFS, errno.EROFS, [])
                    if when == "between boxes" and turn == 0:
                        delete()

    with_own_mounts(play)


@pytest.mark.parametrize("readonly", [False, True])
def test_a_mount_may_go_where_a_file_system_of_the_host_is_mounted(tmp_path: Path, *, readonly: bool) -> None:
    source, volume, temporary = tmp_path / "source", tmp_path / "volume", tmp_path / "temporary"
    for place in (source, volume, temporary):
        place.mkdir()

    def write_all(name: str) -> list[int]:
        return [write(place / name) for place in (volume, temporary, source)]

    def play() -> None:
        bind(source, volume)
        bind(source, temporary)
        with started() as warden:
            # The tree is used again, and renewed for that, unless its descriptors went to somebody else.
            for name in "012":
                written = run(
                    warden,
                    partial(write_all, name),
                    readonly=readonly,
                    volumes=(Volume(str(source), str(volume)),),
                    tmpfs=(Tmpfs(str(temporary)),),
                )
                assert written == [0, 0, errno.EROFS if readonly else 0]
        assert sorted(os.listdir(source)) == ["0", "1", "2"]

    with_own_mounts(play)


def test_what_is_mounted_over_something_hides_it_in_the_box_too(tmp_path: Path) -> None:
    place = tmp_path / "place"

    def play() -> None:
        mount_at(place / "below")
        (place / "below" / "hidden").touch()
        mount_at(place)
        (place / "shown").touch()
        mount_at(place)
        (place / "on top").touch()
        with started() as warden:
            assert run(warden, lambda: os.listdir(place)) == ["on top"]

    with_own_mounts(play)


def test_a_filesystem_that_cannot_be_shifted_is_shown_readable(tmp_path: Path) -> None:
    lower, upper, work, place = (tmp_path / name for name in ("lower", "upper", "work", "place"))
    for directory in (lower, upper, work):
        directory.mkdir()
    (lower / "file").write_text("host")

    def play() -> None:
        options = (("lowerdir", str(lower)), ("upperdir", str(upper)), ("workdir", str(work)))
        mount_at(place, "overlay", options)
        with started() as warden:
            assert run(warden, (place / "file").read_text) == "host"
            assert run(warden, lambda: write(place / "file")) in (errno.EACCES, errno.EPERM, errno.EOVERFLOW)
        assert (lower / "file").read_text() == "host"

    with_own_mounts(play)


@pytest.mark.needs("shifted tmpfs")
def test_devices_in_other_filesystems_are_dead(tmp_path: Path) -> None:
    place = tmp_path / "place"

    def play() -> None:
        mount_at(place)
        os.mknod(place / "null", 0o20666, os.makedev(1, 3))
        with started() as warden:
            assert run(warden, lambda: write(place / "null")) == errno.EACCES
            assert run(warden, lambda: write(Path("/v/null")), volumes=(Volume(str(place), "/v"),)) == errno.EACCES

    with_own_mounts(play)


@pytest.mark.needs("shifted tmpfs")
def test_a_volume_brings_what_is_mounted_below_it_and_nothing_of_the_session(tmp_path: Path) -> None:
    source = tmp_path / "source"

    def play() -> None:
        mount_at(source / "inner")
        (source / "inner" / "file").write_text("host")

        def look() -> tuple[str, list[str], list[str]]:
            (session,) = (name for name in os.listdir("/tmpdir") if name.startswith("nsbox-"))
            try:
                found = os.listdir(f"/tmpdir/{session}/host/0")
            except OSError as error:
                found = [errno.errorcode[error.errno or 0]]
            return Path("/v/inner/file").read_text(), os.listdir(f"{source}/inner"), found

        with started() as warden:
            volumes = (Volume(str(source), "/v"), Volume(os.environ["TMPDIR"], "/tmpdir"))
            assert run(warden, look, volumes=volumes) == ("host", ["file"], ["EACCES"])

    with_own_mounts(play)


def test_a_box_needs_no_temporary_directory_on_the_roots_filesystem(tmp_path: Path) -> None:
    def play() -> None:
        mount_at(tmp_path / "tmp")
        with started(tmpdir=str(tmp_path / "tmp")) as warden:
            assert run(warden, lambda: write(Path("/etc/nsbox-test"))) == 0
            assert run(warden, lambda: os.path.exists("/etc/nsbox-test")) is False

    with_own_mounts(play)


@pytest.mark.parametrize("name", ["with space", "with:colon", "with,comma", "ünï", "back\\slash", "new\nline"])
def test_the_temporary_directory_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with started(tmpdir=str(tmp_path / name), base_temp=str(tmp_path / name)) as warden:
        run(warden, lambda: write(tmp_path / name / "made"), disk=1 << 20)
        run(warden, lambda: write(tmp_path / "made"))
    assert sorted(os.listdir(tmp_path / name)) == ["made"]
    assert sorted(os.listdir(tmp_path)) == [name]


def test_a_volume_that_cannot_be_shifted_is_an_error_that_says_so(tmp_path: Path) -> None:
    lower, upper, work, place = (tmp_path / name for name in ("lower", "upper", "work", "place"))
    for directory in (lower, upper, work):
        directory.mkdir()

    def play() -> str:
        options = (("lowerdir", str(lower)), ("upperdir", str(upper)), ("workdir", str(work)))
        mount_at(place, "overlay", options)
        with started() as warden:
            try:
                warden.acquire(Spec(volumes=(Volume(str(place), "/v"),)))
            except BoxFailed as error:
                return str(error)
        return "a box was made"

    assert with_own_mounts(play).startswith(f"{place}: its file system (overlay) cannot show the ids of a box")


@pytest.mark.needs("shifted tmpfs")
def test_sockets_of_other_filesystems_are_reached(tmp_path: Path) -> None:
    place = tmp_path / "run"
    path = str(place / "socket")

    def play() -> None:
        mount_at(place)
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            server.bind(path)
            server.listen()
            log.bind(f"{path}.log")

            def connect() -> tuple[int, int]:
                with (
                    socket.socket(socket.AF_UNIX) as client,
                    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
                ):
                    return client.connect_ex(path), sender.sendto(b"x", f"{path}.log")

            with started() as warden:
                assert run(warden, connect) == (0, 1)
            assert log.recv(10) == b"x"

    with_own_mounts(play)


def test_a_mount_that_goes_while_boxes_get_to_know_the_host_is_left_out(tmp_path: Path) -> None:
    goes, stays = tmp_path / "a-goes", tmp_path / "b-stays"

    class Late(Doors):
        def clone_tree(self, path: str, **options: Any) -> int:
            if path == str(goes):
                mount.detach(path)
                goes.rmdir()
            return mount.clone_tree(path, **options)

    def play() -> list[str]:
        mount_at(goes)
        mount_at(stays)
        session = Session(Late(), str(tmp_path), os.environ.get("PYTEST_NSBOX_CGROUP_PARENT"))
        try:
            session.open()
            return [shown.target for shown in session.host.mounts if shown.target.startswith(str(tmp_path))]
        finally:
            assert session.close() == []

    assert with_own_mounts(play) == [str(stays)]
