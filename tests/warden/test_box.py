"""What a box is, seen from inside."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from pytest_nsbox.kernel.cgroup import find_mounts
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.mounts import Tmpfs, Volume
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden.client import Warden
from tests.capabilities import cgroup_version
from tests.warden.boxes import collect, fork_into, run, run_for_usage, run_in, started, status_field

pytestmark = pytest.mark.keeps_running("boxes of the module's warden")


def test_the_test_is_not_process_one_and_sees_only_its_own_processes(warden: Warden) -> None:
    def look() -> tuple[int, list[str]]:
        return os.getpid(), sorted(name for name in os.listdir("/proc") if name.isdigit())

    pid, seen = run(warden, look)
    assert pid == 2
    assert seen == ["1", "2"]


def test_every_kind_of_namespace_is_the_boxs_own(warden: Warden) -> None:
    kinds = ["user", "mnt", "pid", "uts", "ipc", "net", "cgroup"]
    if os.path.exists("/proc/self/ns/time"):
        kinds.append("time")

    def look() -> dict[str, str]:
        return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}

    inside, outside = run(warden, look, net="none"), look()
    assert [kind for kind in kinds if inside[kind] == outside[kind]] == []


def test_in_no_hierarchy_is_a_box_in_a_group_of_the_hosts(warden: Warden) -> None:
    def of(pid: int | str) -> dict[str, str]:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        return {names: path for _, names, path in (line.split(":", 2) for line in lines)}

    def look() -> None:
        ready[1].send(b"in")
        ready[1].recv(1)

    box = warden.acquire(Spec())
    ready = socket.socketpair()
    with ready[0], ready[1]:
        pid, result = fork_into(box, look)
        assert ready[0].recv(2) == b"in"
        found = of(pid)
        ready[0].send(b"x")
        collect(pid, result)
        box.release()
    mounted = {name for mount in find_mounts() for name in mount.controllers or [""]}
    assert mounted
    for names, path in found.items():
        if mounted & set(names.split(",")):
            assert path.endswith((f"/{box.name}", "/screen")), (names, path)


def test_orphans_are_reaped(warden: Warden) -> None:
    def leave_an_orphan() -> str:
        done = subprocess.run(["sh", "-c", "sleep 0.05 & echo $!"], stdout=subprocess.PIPE, text=True, check=True)
        orphan = done.stdout.strip()
        deadline = time.monotonic() + 5
        while os.path.exists(f"/proc/{orphan}") and time.monotonic() < deadline:
            time.sleep(0.01)
        return "gone" if not os.path.exists(f"/proc/{orphan}") else status_field("State", orphan)

    assert run(warden, leave_an_orphan) == "gone"


def test_files_of_the_host_keep_their_owner_and_can_be_changed_in_the_box_alone(warden: Warden, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("host")

    def change() -> tuple[int, int, str]:
        before = os.stat(path)
        path.write_text("box")
        os.chown(path, 1234, 1235)
        after = os.stat(path)
        assert (after.st_uid, after.st_gid) == (1234, 1235)
        return before.st_uid, os.stat("/etc/passwd").st_uid, path.read_text()

    assert run(warden, change) == (0, 0, "box")
    assert path.read_text() == "host"
    assert path.stat().st_uid == 0


def test_what_one_box_wrote_is_not_there_in_the_next(warden: Warden) -> None:
    def write() -> bool:
        found = any(os.path.lexists(path) for path in ("/left", "/dev/shm/left", "/dev/left", "/usr/left"))
        for path in ("/left", "/dev/shm/left", "/dev/left", "/usr/left"):
            Path(path).write_text("x")
        return found

    assert [run(warden, write) for _ in range(5)] == [False] * 5


def test_a_mode_that_one_box_changed_is_not_seen_by_the_next(warden: Warden) -> None:
    def change() -> tuple[int, int, int]:
        seen = tuple(stat.S_IMODE(os.stat(path).st_mode) for path in ("/", "/dev/null", "/dev/shm"))
        for path in ("/", "/dev/null", "/dev/shm"):
            os.chmod(path, 0o700)
        return seen  # type: ignore[return-value]

    first = run(warden, change)
    assert first[1:] == (0o666, 0o1777)
    assert [run(warden, change) for _ in range(4)] == [first] * 4


def test_a_file_that_the_host_made_or_replaced_since_the_last_box_is_seen(warden: Warden, tmp_path: Path) -> None:
    path = tmp_path / "file"
    later = tmp_path / "later"
    path.write_text("old")

    def look() -> tuple[str, bool]:
        return path.read_text(), later.exists()

    # Until a tree that looked both up comes round again.
    assert [run(warden, look) for _ in range(4)] == [("old", False)] * 4
    new = tmp_path / "new"
    new.write_text("new")
    new.rename(path)
    later.touch()
    warden.forget()
    assert [run(warden, look) for _ in range(4)] == [("new", True)] * 4


def test_directories_of_the_host_can_be_renamed_and_hard_links_kept(warden: Warden, tmp_path: Path) -> None:
    (tmp_path / "dir" / "below").mkdir(parents=True)
    (tmp_path / "one").write_text("x")
    os.link(tmp_path / "one", tmp_path / "two")

    def change() -> tuple[bool, str, int]:
        os.rename(tmp_path / "dir", tmp_path / "moved")
        with open(tmp_path / "one", "a") as file:
            file.write("y")
        return (
            (tmp_path / "moved" / "below").is_dir(),
            (tmp_path / "two").read_text(),
            os.stat(tmp_path / "two").st_nlink,
        )

    assert run(warden, change) == (True, "xy", 2)
    assert (tmp_path / "dir").is_dir()


def test_devices_terminals_and_queues_work(warden: Warden) -> None:
    def use() -> tuple[bytes, int, str, bool]:
        with open("/dev/zero", "rb") as zero, open("/dev/null", "wb") as null:
            null.write(b"x")
            read = zero.read(2)
        leader, follower = os.openpty()
        name = os.ttyname(follower)
        os.close(leader)
        os.close(follower)
        Path("/dev/shm/x").write_text("x")
        return read, len(os.urandom(4)), name, os.path.isdir("/dev/mqueue")

    assert run(warden, use) == (b"\0\0", 4, "/dev/pts/0", True)


def test_a_mount_may_be_made_in_the_box_and_the_locked_ones_stay(warden: Warden, tmp_path: Path) -> None:
    def mount() -> list[int]:
        subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
        return [
            subprocess.run(["umount", target], capture_output=True, check=False).returncode
            for target in ("/mnt", "/dev", "/")
        ]

    assert run(warden, mount) == [0, 32, 32]


def test_loopback_is_up_and_nothing_else_is_there_without_a_network(warden: Warden) -> None:
    def connect() -> list[str]:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as server, socket.socket(family) as client:
                server.bind((address, 0))
                server.listen()
                client.connect(server.getsockname())
        return sorted(os.listdir("/sys/class/net"))

    assert "eth0" not in run(warden, connect, net="none")
    with_host = run(warden, lambda: sorted(os.listdir("/sys/class/net")))
    assert with_host == sorted(os.listdir("/sys/class/net"))


def test_hostname_is_set_for_the_box_alone(warden: Warden) -> None:
    assert run(warden, socket.gethostname, hostname="small-machine") == "small-machine"
    assert run(warden, socket.gethostname) == socket.gethostname() != "small-machine"


@pytest.mark.needs("time namespace")
def test_clocks_are_moved(warden: Warden) -> None:
    def look() -> tuple[float, float]:
        return time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)

    moved = run(warden, look, clock=(("monotonic", 1000.5), ("boottime", 86400.0)))
    here = look()
    assert moved[0] - here[0] == pytest.approx(1000.5, abs=2)
    assert moved[1] - here[1] == pytest.approx(86400, abs=2)


def test_a_readonly_root_refuses_writes_and_its_mounts_take_them(warden: Warden, tmp_path: Path) -> None:
    def write() -> tuple[list[int], int]:
        refused = []
        for path in ("/refused-by-nsbox", "/tmp/refused-by-nsbox", str(tmp_path / "y")):
            try:
                Path(path).touch()
            except OSError as error:
                refused.append(error.errno or 0)
        for path in ("/dev/shm/x", "/t/x", "/v/x"):
            Path(path).touch()
        return refused, subprocess.run(
            ["mount", "-o", "remount,rw,bind", "/"], capture_output=True, check=False
        ).returncode

    volume = tmp_path / "volume"
    volume.mkdir()
    result = run(warden, write, readonly=True, tmpfs=(Tmpfs("/t"),), volumes=(Volume(str(volume), "/v"),))
    assert result == ([30, 30, 30], 32)
    assert (volume / "x").exists()


@pytest.mark.parametrize(
    "name", ["a space", "a,comma", "a:colon", "ünïcödé", "back\\slash", 'quo"te', "-dash", "new\nline"]
)
def test_volumes_have_any_name(warden: Warden, tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.mkdir()
    (source / "file").write_text("host")
    target = f"/made here/{name}"

    def use() -> tuple[str, int, int]:
        read = Path(target, "file").read_text()
        Path(target, "new").write_text("x")
        try:
            Path("/ro", "new2").write_text("x")
        except OSError as error:
            code = error.errno or 0
        remount = subprocess.run(["mount", "-o", "remount,rw,bind", "/ro"], capture_output=True, check=False).returncode
        return read, code, remount

    volumes = (Volume(str(source), target), Volume(str(source), "/ro", readonly=True))
    assert run(warden, use, volumes=volumes) == ("host", 30, 32)
    assert (source / "new").stat().st_uid == 0
    assert not (source / "new2").exists()


def test_a_volume_may_be_a_file_over_a_file_or_where_none_is(warden: Warden, tmp_path: Path) -> None:
    source = tmp_path / "hosts"
    source.write_text("127.0.0.1 box\n")
    volumes = (Volume(str(source), "/etc/hosts"), Volume(str(source), "/new/dir/file"))

    def read() -> tuple[str, str]:
        return Path("/etc/hosts").read_text(), Path("/new/dir/file").read_text()

    assert run(warden, read, volumes=volumes) == ("127.0.0.1 box\n",) * 2
    assert not os.path.exists("/new")


def test_mount_points_behind_symlinks_stay_in_the_box(warden: Warden, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    source = tmp_path / "source"
    source.mkdir()
    (source / "here").touch()

    def look() -> list[str]:
        return os.listdir(target)

    assert run(warden, look, volumes=(Volume(str(source), str(tmp_path / "link")),)) == ["here"]
    assert os.listdir(target) == []


def test_a_named_volume_lasts_from_box_to_box(warden: Warden) -> None:
    volumes = (Volume("data", "/data", kind="volume"),)
    run(warden, lambda: Path("/data/x").write_text("kept"), volumes=volumes)
    assert run(warden, lambda: Path("/data/x").read_text(), volumes=volumes) == "kept"


def test_a_missing_volume_is_named(warden: Warden) -> None:
    text = r"^volumes: '/does/not/exist:/x': there is no /does/not/exist on the host, and boxes make no SRC$"
    with pytest.raises(BoxFailed, match=text):
        warden.acquire(Spec(volumes=(Volume("/does/not/exist", "/x"),)))


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        ("/tmp", "/dev/null", "/tmp is a directory, and /dev/null is none"),
        ("/etc/passwd", "/tmp", "/etc/passwd is no directory, and /tmp is one"),
    ],
)
def test_a_volume_and_its_place_are_two_of_a_kind(warden: Warden, source: str, target: str, told: str) -> None:
    with pytest.raises(BoxFailed) as caught:
        warden.acquire(Spec(volumes=(Volume(source, target),)))
    assert str(caught.value) == f"volumes: '{source}:{target}': {told} (accepted: two of a kind)"


def test_a_tmpfs_has_its_size_and_begins_empty(warden: Warden) -> None:
    def fill() -> tuple[list[str], int]:
        before = os.listdir("/t")
        try:
            Path("/t/x").write_bytes(bytes(2 << 20))
        except OSError as error:
            return before, error.errno or 0
        return before, 0

    spec = {"tmpfs": (Tmpfs("/t", 1 << 20),)}
    assert [run(warden, fill, **spec) for _ in range(3)] == [([], 28)] * 3


def test_the_disk_is_full_at_its_limit_wherever_one_writes(warden: Warden) -> None:
    def fill() -> tuple[int, int]:
        codes = []
        for path in ("/var/x", "/x"):
            try:
                Path(path).write_bytes(bytes(3 << 20))
                codes.append(0)
            except OSError as error:
                codes.append(error.errno or 0)
        return codes[0], codes[1]

    assert run(warden, fill, disk=5 << 20) == (0, 28)


def test_the_working_directory_is_that_of_pytest_or_the_one_asked_for(
    warden: Warden, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(warden, os.getcwd) == str(tmp_path)
    assert run(warden, os.getcwd, workdir="/usr") == "/usr"


@pytest.mark.parametrize(("user", "ids"), [("nobody", (65534, 65534)), ("33", (33, 33)), ("4321:1234", (4321, 1234))])
def test_the_test_runs_as_the_user(user: str, ids: tuple[int, int], tmp_path: Path) -> None:
    base = tmp_path / "pytest-of-root" / "base"
    base.mkdir(parents=True)
    os.chmod(tmp_path / "pytest-of-root", 0o700)
    os.chmod(base, 0o700)

    def look() -> tuple[int, int, int, int, bool]:
        (base / "made").write_text("x")
        return *os.getresuid()[:2], *os.getresgid()[:1], os.stat(base).st_uid, os.access("/etc/shadow", os.R_OK)

    with started(base_temp=str(base)) as warden:
        found, released = run_for_usage(warden, look, user=user)
    assert found == (ids[0], ids[0], ids[1], ids[0], False)
    assert (base / "made").stat().st_uid == 0
    assert released.files_changed == 0


def test_an_unknown_user_is_named(warden: Warden) -> None:
    with pytest.raises(BoxFailed, match=r"^user: no 'ghost' in the box's /etc/passwd$"):
        warden.acquire(Spec(user="ghost"))


def test_privileged_boxes_have_hosts_ids(warden: Warden) -> None:
    def look() -> tuple[str, int, bool]:
        os.mknod("/node", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        with open("/node", "wb") as node:
            node.write(b"x")
        return Path("/proc/self/uid_map").read_text(), os.getpid(), os.path.exists("/proc/1")

    mapped, pid, _ = run(warden, look, privileged=True)
    assert mapped.split() == ["0", "0", "4294967295"]
    assert pid == 2
    assert not os.path.exists("/node")


def test_ulimits_hold_and_hard_ones_can_only_be_lowered(warden: Warden) -> None:
    import resource

    def look() -> tuple[int, int]:
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    assert run(warden, look, ulimits=(("nofile", 64, 128),)) == (64, 128)


def test_limits_are_in_force_and_shown_inside(warden: Warden) -> None:
    v1 = ("memory/memory.limit_in_bytes", "pids/pids.max", "cpu/cpu.cfs_quota_us")
    files = v1 if cgroup_version() == 1 else ("memory.max", "pids.max", "cpu.max")

    def look() -> list[str]:
        return [Path("/sys/fs/cgroup", name).read_text().split()[0] for name in files]

    assert run(warden, look, mem=64 << 20, pids=20, cpu=0.5) == [str(64 << 20), "20", "50000"]


def test_shared_paths_are_the_hosts_own(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    with started(base_temp=str(base)) as warden:
        run(warden, lambda: (base / "made").write_text("x"))
        assert (base / "made").stat().st_uid == 0
        assert run(warden, (base / "made").read_text, readonly=True) == "x"


def test_a_shared_path_that_appears_late_is_bound_when_the_box_is_handed_out(tmp_path: Path) -> None:
    late = tmp_path / "late"
    with started(shared_paths=(str(late),)) as warden:
        warden.prefetch(Spec())
        time.sleep(0.2)
        late.mkdir()
        run(warden, lambda: (late / "made").write_text("x"))
        assert (late / "made").exists()


def test_a_listening_socket_of_the_host_is_reached_only_with_its_network(warden: Warden, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    def connect() -> int:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(path)

    warden.prefetch(Spec())
    time.sleep(0.2)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert run(warden, connect) == 0
        assert run(warden, connect) == 0
        assert run(warden, connect, net="none") == 111


def test_a_socket_that_an_ended_server_left_is_not_in_boxes(tmp_path: Path) -> None:
    stale, alive, file = tmp_path / "stale", tmp_path / "alive", tmp_path / "file"
    file.touch()
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(str(stale))

    def serve() -> list[str]:
        found = sorted(path.name for path in tmp_path.iterdir() if not path.is_dir())
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(stale))
        return found

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(alive))
        server.listen()
        with started(tmpdir=str(tmp_path)) as warden:
            for _ in range(2):
                assert run(warden, serve) == ["alive", "file"]
            box = warden.acquire(Spec())
            try:
                assert list(box.changes()) == []
                collect(*fork_into(box, serve))
                assert list(box.changes()) == [("A", str(stale))]
            finally:
                box.kill()
                box.release()
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert stale.is_socket()


def test_changes_are_listed_by_kind(warden: Warden, tmp_path: Path) -> None:
    (tmp_path / "changed").write_text("x")
    (tmp_path / "deleted").write_text("x")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "gone" / "below").mkdir(parents=True)
    (tmp_path / "replaced").mkdir()
    (tmp_path / "replaced" / "old").touch()

    def change() -> None:
        (tmp_path / "changed").write_text("y")
        (tmp_path / "deleted").unlink()
        (tmp_path / "kept" / "new").write_text("y")
        (tmp_path / "gone" / "below").rmdir()
        (tmp_path / "gone").rmdir()
        (tmp_path / "replaced" / "old").unlink()
        (tmp_path / "replaced").rmdir()
        (tmp_path / "replaced").mkdir()
        (tmp_path / "added").mkdir()
        (tmp_path / "added" / "file").touch()

    box = warden.acquire(Spec())
    try:
        assert box.changes() == []
        run_in(box, change)
        changes = box.changes()
    finally:
        released = box.release()
    assert [(kind, path.removeprefix(f"{tmp_path}/")) for kind, path in changes] == [
        ("A", "added"),
        ("A", "added/file"),
        ("C", "changed"),
        ("D", "deleted"),
        ("D", "gone"),
        ("A", "kept/new"),
        ("C", "replaced"),
        ("D", "replaced/old"),
    ]
    assert released.files_changed == 8


def test_artifacts_are_copied_out_and_nothing_else_of_the_host_with_them(
    warden: Warden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host")
    target = tmp_path / "artifacts" / "test_x"

    def work() -> None:
        os.makedirs("here/deep")
        Path("here/deep/er.txt").write_text("x")
        os.makedirs("/out/sub")
        Path("/out/log.txt").write_text("log")
        Path("/out/sub/more.txt").write_text("more")
        secret.write_text("box")
        os.symlink(secret, "/out/link.txt")
        os.mkfifo("/out/fifo.txt")
        os.chmod("/out/log.txt", 0o640)
        os.symlink("/proc/1/environ", "/out/environ.txt")
        os.symlink("/proc/version", "/out/status.txt")
        os.symlink("/sys/module/kernel/parameters/panic", "/out/sysfs.txt")

    monkeypatch.chdir(tmp_path)
    box = warden.acquire(Spec(artifacts=("here/**/*.txt", "/out/sub", "/out/*.txt", "../../etc/passwd", "none*")))
    try:
        run_in(box, work)
        box.kill()
    finally:
        released = box.release(artifacts_to=str(target))
    files = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert files == ["here/deep/er.txt", "out/link.txt", "out/log.txt", "out/sub/more.txt"]
    assert (target / "out" / "link.txt").read_text() == "box"
    assert stat.S_IMODE((target / "out" / "log.txt").stat().st_mode) == 0o640
    assert sorted(released.artifacts) == [*(f"/{name}" for name in files[1:]), f"{tmp_path}/here/deep/er.txt"]
    # What root of the box may not read is not read for it, and what is no file on a disk is not copied.
    assert sorted(released.problems) == [
        "/out/environ.txt: [Errno 13] Permission denied: '/out/environ.txt'",
        "/out/status.txt: [Errno 22] the kernel's, and not a file on a disk",
        "/out/sysfs.txt: [Errno 22] the kernel's, and not a file on a disk",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in [target, *target.rglob("*")] if path.is_dir()} == {0o755}


def test_artifacts_are_copied_with_their_holes(warden: Warden, tmp_path: Path) -> None:
    def work() -> None:
        with open("/sparse", "wb") as file:
            file.write(b"begin")
            file.seek(1 << 36)
            file.write(b"end")
        Path("/locked").write_text("x")
        os.chmod("/locked", 0)
        os.chown("/locked", 1000, 1000)

    box = warden.acquire(Spec(artifacts=("/sparse", "/locked", "/missing")))
    try:
        run_in(box, work)
        box.kill()
    finally:
        released = box.release(artifacts_to=str(tmp_path))
    assert (released.artifacts, released.problems) == (("/sparse", "/locked"), ())
    at = (tmp_path / "sparse").stat()
    assert at.st_size == (1 << 36) + 3
    assert at.st_blocks < 1000
    with open(tmp_path / "sparse", "rb") as file:
        assert file.read(5) == b"begin"
        file.seek(1 << 36)
        assert file.read() == b"end"
    assert (tmp_path / "locked").read_text() == "x"


def test_other_boxes_layers_are_out_of_reach(warden: Warden) -> None:
    (session,) = (name for name in os.listdir(tempfile.gettempdir()) if name.startswith("nsbox-"))
    place = f"{tempfile.gettempdir()}/{session}"

    def look() -> list[int]:
        codes = []
        for function, path in (
            (os.listdir, place),
            (os.listdir, f"{place}/scratch"),
            (os.listdir, f"{place}/scratch/layers"),
            (os.listdir, f"{place}/volumes"),
            (os.listdir, f"{place}/host/0"),
            (lambda path: os.open(path, os.O_RDONLY), f"{place}/lock"),
        ):
            try:
                function(path)
                codes.append(0)
            except OSError as error:
                codes.append(error.errno or -1)
        return codes

    assert os.listdir(f"{place}/scratch/layers")
    assert set(run(warden, look)) == {errno.EACCES}
