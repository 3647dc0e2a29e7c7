"""What a box is from inside, by the marker's keys."""

import asyncio
import errno
import os
import pathlib
import resource
import socket
import subprocess
import sys
import tempfile
import time

import pytest

HERE = pathlib.Path(__file__).parent
HOST = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
HOSTNAME = os.uname().nodename
PID = os.getpid()
UNLIMITED = resource.getrlimit(resource.RLIMIT_NOFILE)
WRITES = ["/etc/made-in-a-box", "/usr/made-in-a-box", "/var/tmp/made-in-a-box", str(HERE / "made-in-a-box")]


def test_namespaces_of_its_own():
    for name in ("pid", "mnt", "uts", "ipc", "user", "cgroup"):
        assert os.readlink(f"/proc/self/ns/{name}") != HOST[name], name
    assert os.getpid() != 1
    assert not os.path.exists(f"/proc/{PID}") or PID < 1000
    assert len([name for name in os.listdir("/proc") if name.isdigit()]) < 10


def test_writes_stay_in_the_box():
    for path in WRITES:
        pathlib.Path(path).write_text("x")
    os.unlink("/etc/hostname")
    (HERE / "given").write_text("changed")
    os.rename(HERE / "directory", HERE / "renamed")
    assert (HERE / "renamed" / "inner").read_text() == "inner"
    os.chmod(HERE / "other", 0o600)
    os.chown(HERE / "other", 1234, 1234)
    assert os.stat(HERE / "other").st_uid == 1234


def test_writes_of_another_test_are_not_seen():
    assert not any(os.path.exists(path) for path in WRITES)
    assert os.path.exists("/etc/hostname")
    assert (HERE / "given").read_text() == "given"
    assert (HERE / "directory" / "inner").read_text() == "inner"
    assert os.stat(HERE / "other").st_mode & 0o777 == 0o644


@pytest.mark.sandbox(net=False)
def test_no_network():
    names = sorted(os.listdir("/sys/class/net"))
    assert names == ["lo"] or "lo" in names
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as server:
            server.bind((host, 80))
            server.listen()
            with socket.create_connection((host, 80), timeout=2):
                pass
    with pytest.raises(OSError) as refused:
        socket.create_connection(("192.0.2.1", 80), timeout=2)
    assert refused.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    child = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    assert "unreachable" in subprocess.run([sys.executable, "-S", "-c", child], capture_output=True, text=True).stderr
    assert asyncio.run(asyncio.sleep(0, 5)) == 5  # with a pair of unix sockets of its own


@pytest.mark.sandbox(net=True)
def test_hosts_network():
    assert os.readlink("/proc/self/ns/net") == HOST["net"]


@pytest.mark.sandbox(hostname="named", env={"ADDED": "1", "HOME": None}, workdir="/usr")
def test_identity():
    assert os.uname().nodename == socket.gethostname() == "named"
    assert os.environ["ADDED"] == "1"
    assert "HOME" not in os.environ
    assert os.getcwd() == "/usr"
    assert subprocess.run(["pwd"], capture_output=True, check=True).stdout == b"/usr\n"


def test_identity_is_the_hosts_by_default():
    assert os.getcwd() == str(HERE)
    assert os.getuid() == os.getgid() == 0
    assert "ADDED" not in os.environ


@pytest.mark.sandbox(user="nobody")
@pytest.mark.parametrize("attempt", [1, 2])
def test_user(tmp_path, attempt):
    assert os.getuid() == os.geteuid() == 65534
    assert not os.getgroups() or set(os.getgroups()) == {os.getgid()}
    (tmp_path / "file").write_text("x")
    with pytest.raises(PermissionError):
        open("/etc/shadow").close()
    with pytest.raises(PermissionError):
        open("/etc/made", "w").close()


@pytest.mark.sandbox(user="1234:4321")
def test_user_by_numbers(tmp_path):
    assert (os.getuid(), os.getgid()) == (1234, 4321)
    (tmp_path / "file").write_text("x")
    assert (tmp_path / "file").stat().st_uid == 1234


def test_root_may_become_another():
    if (pid := os.fork()) == 0:
        os.setgid(1234)
        os.setuid(1234)
        os._exit(os.getuid() == 1234 and os.getgid() == 1234)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


@pytest.mark.sandbox(readonly=True, tmpfs=["/mnt/space:1M"])
def test_readonly(tmp_path):
    for path in ("/etc/made", str(HERE / "made")):
        with pytest.raises(OSError) as refused:
            open(path, "w").close()
        assert refused.value.errno == errno.EROFS
    (tmp_path / "file").write_text("x")
    open("/dev/shm/file", "w").close()
    open("/mnt/space/file", "w").close()


@pytest.mark.sandbox(tmpfs=["/scratch/made/here:4M", "/mnt"])
def test_tmpfs():
    assert os.listdir("/scratch/made/here") == []
    with pytest.raises(OSError) as refused, open("/scratch/made/here/file", "wb") as file:
        file.write(b"x" * 5 * 2**20)
    assert refused.value.errno == errno.ENOSPC


@pytest.mark.sandbox(disk="8M")
def test_disk():
    with pytest.raises(OSError) as refused, open("/var/tmp/file", "wb") as file:
        file.write(b"x" * 20 * 2**20)
    assert refused.value.errno == errno.ENOSPC
    open("/etc/small", "w").close()


@pytest.mark.sandbox(ulimits={"nofile": 200, "core": 0})
def test_ulimits():
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, 200)
    files = []
    with pytest.raises(OSError) as refused:
        while True:
            files.append(open("/dev/null"))
    assert refused.value.errno == errno.EMFILE
    for file in files:
        file.close()


def test_ulimits_are_the_hosts_by_default():
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == UNLIMITED


@pytest.mark.sandbox(cpuset="0")
def test_cpuset():
    assert os.sched_getaffinity(0) == {0}


ODD = ["plain", "with space", "with,comma", "with:colon", "ümläut ✓", 'quo"te', "back\\slash", "per%cent", "=equals"]


@pytest.mark.sandbox(
    volumes=[(f"./sources/{name}", f"/mnt/{name}/deep", "ro" if "," in name else "rw") for name in ODD]
    + ["./sources/plain:/opt/by-text:ro", "./sources/file:/opt/a-file", "named:/srv/kept"]
)
@pytest.mark.parametrize("time", ["first", "second"])
def test_volumes(time):
    for name in ODD:
        target = pathlib.Path(f"/mnt/{name}/deep")
        assert (target / "here").read_text() == name
        if "," in name:
            with pytest.raises(OSError) as refused:
                (target / "new").write_text("x")
            assert refused.value.errno == errno.EROFS
        else:
            (target / f"written {time}").write_text(name)
    assert os.path.exists("/opt/by-text/here")
    with pytest.raises(OSError):
        open("/opt/by-text/new", "w").close()
    assert open("/opt/a-file").read() == "a file"
    kept = pathlib.Path("/srv/kept")
    assert sorted(os.listdir(kept)) == {"first": [], "second": ["first"]}[time]
    (kept / time).write_text("x")


def test_devices_and_shared_memory(tmp_path):
    for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx"):
        assert os.path.exists(f"/dev/{name}"), name
    assert os.read(os.open("/dev/zero", os.O_RDONLY), 2) == b"\0\0"
    assert "of-the-host" not in os.listdir("/dev/shm")
    leader, follower = os.openpty()
    os.write(follower, b"x\n")
    assert os.read(leader, 10).startswith(b"x")
    from multiprocessing import shared_memory

    memory = shared_memory.SharedMemory("nsbox-test-box", create=True, size=10)
    memory.close()
    memory.unlink()
    assert os.path.ismount("/dev/mqueue")
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]


def test_unix_sockets(tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{directory}/socket")
        server.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{directory}/socket")
            client.sendall(b"x")
            assert server.accept()[0].recv(1) == b"x"


def ask(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return client.recv(100)


def test_unix_socket_of_the_host():
    assert ask(os.environ["HOST_SOCKET"]) == b"from the host"


@pytest.mark.sandbox(net=False)
def test_unix_socket_of_the_host_without_network():
    with pytest.raises(OSError):
        ask(os.environ["HOST_SOCKET"])


@pytest.mark.sandbox(clock={"monotonic": 100000, "boottime": 200000})
def test_clocks():
    assert time.clock_gettime(time.CLOCK_BOOTTIME) > 200000
    assert time.monotonic() > 100000


@pytest.mark.sandbox(privileged=True)
def test_privileged():
    assert os.readlink("/proc/self/ns/user") == HOST["user"]
    assert os.readlink("/proc/self/ns/mnt") != HOST["mnt"]
    open("/etc/made-in-a-box", "w").close()


@pytest.mark.sandbox(artifacts=["out/*.txt", "/var/tmp/left"])
def test_artifacts():
    os.makedirs("out")
    pathlib.Path("out/one.txt").write_text("one")
    pathlib.Path("out/two.bin").write_text("two")
    pathlib.Path("/var/tmp/left").write_text("left")


def test_sandbox_fixture(sandbox):
    assert sandbox.changes() == []
    pathlib.Path("/etc/made-in-a-box").write_text("x")
    (HERE / "given").write_text("changed")
    os.unlink("/etc/hostname")
    changes = {path: kind for kind, path in sandbox.changes()}
    assert changes["/etc/made-in-a-box"] == "A"
    assert changes[str(HERE / "given")] == "C"
    assert changes["/etc/hostname"] == "D"
    assert sandbox.changes()[0].kind in "ACD"
    usage = sandbox.usage()
    assert usage["wall_s"] > 0 and usage["memory_peak_bytes"] > 0
    found = sandbox.inspect()
    assert found["Name"] == sandbox.name
    assert {"Id", "State", "Pid", "Namespaces", "Mounts", "Networks", "Cgroup", "Limits", "Image"} <= set(found)
    assert sandbox.spec.net == "host"


def test_shared_path(tmp_path):
    shared = pathlib.Path(os.environ["SHARED"])
    assert (shared / "given").read_text() == "given"
    (shared / "made").write_text("made")


def test_tmp_is_ones_own_and_base_temp_the_hosts(tmp_path):
    pathlib.Path("/tmp/made-in-a-box").write_text("x")
    (tmp_path / "made").write_text("x")
