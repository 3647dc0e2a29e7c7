"""Containers, asked for from the process that has the warden: what `nsbox` and `nsbox_session` are made of."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox import BoxFailed
from pytest_nsbox.fixtures import Change
from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.policy.errors import SpecProblems
from pytest_nsbox.warden.client import Warden
from tests.capabilities import times

# The warden's connection and the boxes' processes stay for the module.
pytestmark = pytest.mark.keeps_running


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestRun:
    def test_tells_status_and_both_streams(self, boxes: NsBox):
        result = boxes.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (result.returncode, result.stdout, result.stderr) == (3, "out\n", "err\n")
        assert not result.oom_killed
        assert not result.timed_out

    def test_a_signal_is_a_negative_status(self, boxes: NsBox):
        assert boxes.run(["sh", "-c", "kill -9 $$"]).returncode == -9

    def test_input_of_any_size_and_output_of_any_size(self, boxes: NsBox):
        data = os.urandom(5_000_000)
        result = boxes.run(["sh", "-c", "cat; cat /dev/zero | head -c 3000000 >&2"], input=data, text=False)
        assert result.stdout == data
        assert result.stderr == bytes(3_000_000)

    def test_reads_nothing_without_input(self, boxes: NsBox):
        assert boxes.run(["cat"]).stdout == ""

    @pytest.mark.parametrize(("program", "status"), [("nope", 127), ("/no/such", 127), ("/etc/passwd", 126)])
    def test_a_program_that_cannot_run_has_dockers_status(self, boxes: NsBox, program: str, status: int):
        result = boxes.run([program])
        assert result.returncode == status
        assert result.stderr.startswith(f"exec {program}: ")

    def test_check_shows_everything(self, boxes: NsBox):
        with pytest.raises(BoxFailed) as caught:
            boxes.run(["sh", "-c", "echo some; echo wrong >&2; exit 4"], check=True)
        text = str(caught.value)
        assert "exited with status 4" in text
        assert "--- stdout\nsome" in text
        assert "--- stderr\nwrong" in text

    def test_timeout_kills_it(self, boxes: NsBox):
        begun = time.monotonic()
        # A slow VM kernel needs some of it to start a shell.
        result = boxes.run(["sh", "-c", "echo begun; sleep 60"], timeout="2s")
        assert time.monotonic() - begun < 50
        assert (result.timed_out, result.returncode, result.stdout) == (True, -9, "begun\n")
        with pytest.raises(BoxFailed, match="timed out after 0"):
            boxes.run(["sleep", "60"], timeout=0.1, check=True)

    def test_changes_are_told_and_thrown_away(self, boxes: NsBox):
        result = boxes.run(["sh", "-c", "echo x > /nsbox-new"])
        assert result.changes == (Change("A", "/nsbox-new"),)
        assert not Path("/nsbox-new").exists()
        assert result.usage["files_changed"] == 1

    def test_usage_is_counted(self, boxes: NsBox):
        used = boxes.run(["sh", "-c", "for i in 1 2 3; do :; done"]).usage
        assert used["wall_s"] > 0
        assert used["cpu_s"] > 0

    def test_keys_of_the_marker_are_keywords(self, boxes: NsBox):
        result = boxes.run(
            ["sh", "-c", "hostname; pwd; id -u; echo $GREETING; ulimit -n"],
            hostname="tiny",
            workdir="/tmp",
            user="nobody",
            env={"GREETING": "hello"},
            ulimits={"nofile": 77},
        )
        assert result.stdout.split() == ["tiny", "/tmp", "65534", "hello", "77"]

    def test_an_unknown_key_is_told(self, boxes: NsBox):
        with pytest.raises(SpecProblems, match=r"nsbox.run: unknown key 'memmory' \(did you mean 'mem'"):
            boxes.run(["true"], memmory="1G")

    def test_argv_is_a_list(self, boxes: NsBox):
        with pytest.raises(TypeError, match="accepted: a list such as"):
            boxes.run("true")

    def test_the_environment_is_not_pytests(self, boxes: NsBox, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("SECRET", "x")
        assert "SECRET" not in boxes.run(["env"]).stdout

    def test_has_no_descriptor_but_its_streams(self, boxes: NsBox):
        # One more is the listing's own.
        assert boxes.run(["ls", "/proc/self/fd"]).stdout.split() == ["0", "1", "2", "3"]

    def test_signals_and_umask_are_as_a_shell_has_them(self, boxes: NsBox):
        umask, blocked, ignored = boxes.run(
            ["sh", "-c", "umask; sed -n 's/Sig[BI][lg][kn]:.//p' /proc/self/status"]
        ).stdout.split()
        # The C library keeps the first two realtime signals for itself; they are as they were for pytest.
        assert (umask, int(blocked, 16), int(ignored, 16) & 0x7FFFFFFF) == ("0022", 0, 0)

    def test_stdout_can_be_opened_again(self, boxes: NsBox):
        assert boxes.run(["sh", "-c", "echo again > /dev/stdout"], user="nobody").stdout == "again\n"

    def test_what_its_program_leaves_behind_ends_with_it(self, boxes: NsBox):
        begun = time.monotonic()
        assert boxes.run(["sh", "-c", "sleep 60 & echo done"]).stdout == "done\n"
        assert time.monotonic() - begun < 40

    def test_threads_run_boxes_at_once(self, boxes: NsBox):
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda n: boxes.run(["sh", "-c", f"sleep 0.0{n}; echo {n}"]).stdout, range(9)))
        assert found == [f"{n}\n" for n in range(9)]


class TestStart:
    def test_one_life(self, boxes: NsBox):
        box = boxes.start(["sh", "-c", "echo ready; sleep 60"], name="web")
        assert (box.name, box.status, box.returncode) == ("web", "running", None)
        assert Path(f"/proc/{box.pid}").exists()
        wait_until(lambda: box.logs() == "ready\n")
        assert box.stop() == -signal.SIGTERM
        assert (box.status, box.returncode, box.pid) == ("exited", -15, 0)
        assert box.logs() == "ready\n"
        assert box.inspect()["ExitCode"] == 143

    def test_stop_kills_what_ignores_sigterm(self, boxes: NsBox):
        box = boxes.start(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"])
        wait_until(lambda: box.logs() == "ready\n")
        assert box.stop(timeout=0.2) == -9

    def test_wait(self, boxes: NsBox):
        box = boxes.start(["sh", "-c", "sleep 0.2; exit 5"])
        with pytest.raises(TimeoutError, match=r"still runs after 0\.01 s"):
            box.wait(0.01)
        assert box.wait(10) == 5
        assert box.wait() == 5

    def test_a_program_that_cannot_run_is_an_error(self, boxes: NsBox):
        with pytest.raises(BoxFailed, match="exec nope: No such file or directory"):
            boxes.start(["nope"])
        assert boxes.start(["true"]).wait() == 0

    def test_exec(self, boxes: NsBox):
        with boxes.start(["sleep", "60"], env={"A": "1"}, hostname="web") as box:
            result = box.exec(["sh", "-c", "hostname; echo $A$B; id -u; pwd; cat"], env={"B": "2"}, user=65534,
                              workdir="/usr", input="in")  # fmt: skip
            assert result.stdout.split() == ["web", "12", "65534", "/usr", "in"]
            box.exec(["touch", "/made"], check=True)
            assert box.exec(["ls", "/made"]).returncode == 0
            assert Change("A", "/made") in box.changes()
            assert box.exec(["nope"]).returncode == 127
            assert box.exec(["sleep", "60"], timeout=0.1).timed_out
            assert box.status == "running"
        assert box.status == "exited"
        assert Change("A", "/made") in box.changes()

    def test_exec_ends_with_the_box(self, boxes: NsBox):
        box = boxes.start(["sleep", "60"])
        found = []
        thread = threading.Thread(target=lambda: found.append(box.exec(["sleep", "60"]).returncode))
        thread.start()
        time.sleep(0.1)
        box.kill()
        thread.join(10)
        assert found == [-9]
        with pytest.raises(BoxFailed, match="is not running"):
            box.exec(["true"])

    def test_pause_and_resume(self, boxes: NsBox):
        box = boxes.start(["sh", "-c", "while :; do echo x; sleep 0.01; done"])
        box.pause()
        assert box.status == "paused"
        frozen = box.logs()
        time.sleep(0.1)
        assert box.logs() == frozen
        with pytest.raises(BoxFailed, match="paused: resume it first"):
            box.exec(["true"])
        box.resume()
        assert box.status == "running"
        wait_until(lambda: box.logs() != frozen)
        box.pause()
        assert box.kill() == -9

    def test_programs_that_are_being_started_are_paused_too(self, boxes: NsBox):
        # A shell waits for its child of vfork(2) in a way that freezes only if it is asked while it does.
        box = boxes.start(["sh", "-c", "for i in 1 2 3 4; do while :; do /bin/true; done & done; wait"])
        for _ in range(20):
            box.pause()
            assert box.status == "paused"
            box.resume()
        assert box.kill() == -9

    def test_a_paused_box_is_stopped_and_removed(self, boxes: NsBox):
        first, second = boxes.start(["sleep", "60"]), boxes.start(["sleep", "60"])
        first.pause()
        second.pause()
        assert first.stop() == -15

    def test_signal(self, boxes: NsBox):
        box = boxes.start(["sh", "-c", "trap 'echo hup; exit 7' HUP; echo ready; while :; do sleep 0.05; done"])
        wait_until(lambda: box.logs() == "ready\n")
        box.signal("HUP")
        assert box.wait(10) == 7
        assert box.logs() == "ready\nhup\n"

    def test_names_are_unique_and_free_again(self, boxes: NsBox):
        with boxes.start(["sleep", "60"], name="db"), pytest.raises(BoxFailed, match="the name 'db' is taken"):
            boxes.start(["true"], name="db")
        boxes.start(["true"], name="db")
        with pytest.raises(ValueError, match="not a name"):
            boxes.start(["true"], name="../x")

    def test_output_without_end_stops_nobody(self, boxes: NsBox):
        box = boxes.start(["sh", "-c", "yes"])
        try:
            assert boxes.run(["echo", "meanwhile"]).stdout == "meanwhile\n"
            wait_until(lambda: len(box.logs()) > 1_000_000)
        finally:
            box.kill()

    def test_usage_while_it_runs_and_after(self, boxes: NsBox):
        box = boxes.start(["sleep", "60"], mem="64M", pids=10)
        assert box.usage()["memory_limit_bytes"] == 64 << 20
        box.kill()
        assert box.usage()["cpu_s"] >= 0

    def test_a_hundred_at_once(self, boxes: NsBox):
        count = times(100, in_vm=20)
        started = [boxes.start(["sleep", "60"]) for _ in range(count)]
        assert {box.status for box in started} == {"running"}
        assert len({box.pid for box in started}) == count
        boxes.close()
        assert not any(Path(f"/proc/{box._pid}").exists() for box in started)


@pytest.mark.parametrize("seconds", [10**7, 10**9, "300000h"])
class TestTimeoutsBeyondWhatOneCallCanWait:
    def test_of_programs(self, boxes: NsBox, seconds: float | str):
        assert boxes.run(["true"], timeout=seconds).returncode == 0
        with boxes.start(["sleep", "60"], timeout=seconds) as box:
            assert box.exec(["true"], timeout=seconds).returncode == 0

    def test_of_those_who_wait(self, boxes: NsBox, seconds: float | str):
        with boxes.start(["sleep", "0.2"]) as box:
            assert box.wait(timeout=seconds) == 0
        with boxes.start(["sleep", "60"]) as box:
            assert box.stop(timeout=seconds) == -signal.SIGTERM


BAD: dict[str, Callable[[Any, Any], object]] = {
    "Box.signal: sig='NOSUCH': not a signal": lambda _, box: box.signal("NOSUCH"),
    "Box.signal: sig=65: not a signal": lambda _, box: box.signal(65),
    "Box.signal: sig=-1: not a signal": lambda _, box: box.signal(-1),
    "Box.signal: sig=1.5: not a signal": lambda _, box: box.signal(1.5),
    "Box.wait: timeout=nan: not a duration of zero or more": lambda _, box: box.wait(math.nan),
    "Box.wait: timeout=inf: not a duration of zero or more": lambda _, box: box.wait(math.inf),
    "Box.wait: timeout=-1: not a duration of zero or more": lambda _, box: box.wait(-1),
    "Box.stop: timeout='soon': not a duration": lambda _, box: box.stop("soon"),
    "Box.stop: timeout=[]: not a duration": lambda _, box: box.stop([]),
    "Box.exec: timeout=True: not a duration": lambda _, box: box.exec(["true"], timeout=True),
    "Box.exec: workdir='tmp': not an absolute path": lambda _, box: box.exec(["true"], workdir="tmp"),
    "Box.exec: workdir=5: not a text or a path": lambda _, box: box.exec(["true"], workdir=5),
    "Box.exec: env={'A=B': '1'}: 'A=B' is no name": lambda _, box: box.exec(["true"], env={"A=B": "1"}),
    "Box.exec: env=['A=1']: not a table": lambda _, box: box.exec(["true"], env=["A=1"]),
    "input=5: not a text": lambda _, box: box.exec(["cat"], input=5),
    "argv=None: not a list": lambda boxes, _: boxes.run(None),
    "argv=[1]: not a list of texts": lambda boxes, _: boxes.run([1]),
    "argv={'a': 1}: not a list": lambda boxes, _: boxes.run({"a": 1}),
    "nsbox.start: publish=1.5: 1.5 is no port": lambda boxes, _: boxes.start(["true"], publish=1.5),
    "5 is no name of an image": lambda _, box: box.commit(5),
    "nsbox.smallest: low='x': not a size": lambda boxes, _: boxes.smallest(["true"], "mem", "x", "1G"),
}


@pytest.mark.parametrize("told", BAD)
def test_bad_input_is_told_with_its_place_and_value(boxes: NsBox, told: str):
    with boxes.start(["sleep", "60"]) as box:
        with pytest.raises((ValueError, TypeError, BoxFailed)) as caught:
            BAD[told](boxes, box)
        assert str(caught.value).startswith(told)
        assert "(accepted: " in str(caught.value)
        assert box.status == "running"


def test_stop_may_wait_for_ever(boxes: NsBox):
    with boxes.start(["sh", "-c", "trap 'sleep 0.3; exit 4' TERM; echo up; while :; do sleep 0.05; done"]) as box:
        wait_until(lambda: box.logs() == "up\n")
        assert box.stop(timeout=None) == 4


def test_a_client_that_goes_takes_its_boxes_along(warden: Warden):
    boxes = NsBox(warden.connect, "/")
    box = boxes.start(["sleep", "60"])
    pid = box.pid
    boxes.engine.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


class TestVolumes:
    def test_what_is_in_one_outlives_boxes_and_is_shared(self, boxes: NsBox):
        volume = boxes.volume("data")
        boxes.run(["sh", "-c", "echo kept > /data/file"], volumes=[f"{volume}:/data"], check=True)
        assert boxes.run(["cat", "/mnt/file"], volumes=["data:/mnt:ro"]).stdout == "kept\n"
        assert boxes.run(["touch", "/mnt/no"], volumes=["data:/mnt:ro"]).returncode != 0

    def test_one_in_use_is_not_removed(self, boxes: NsBox):
        volume = boxes.volume("used")
        with (
            boxes.start(["sleep", "60"], name="user", volumes=["used:/data"]),
            pytest.raises(BoxFailed, match="the volume 'used' is in use by user"),
        ):
            volume.remove()
        volume.remove()
        with pytest.raises(BoxFailed, match="there is no volume 'used'"):
            volume.remove()

    def test_a_new_one_of_the_same_name_is_empty(self, boxes: NsBox):
        # The box may give back its root before the volume is removed or after.
        for _ in range(times(10, in_vm=4)):
            volume = boxes.volume("again")
            assert boxes.run(["ls", "/data"], volumes=["again:/data"]).stdout == ""
            boxes.run(["touch", "/data/old"], volumes=["again:/data"], check=True)
            volume.remove()

    def test_it_goes_with_the_fixture_that_made_it(self, boxes: NsBox, warden: Warden):
        inner = NsBox(warden.connect, "/")
        inner.volume("short")
        inner.start(["sleep", "60"], volumes=["short:/data"])
        inner.close()
        assert boxes.volume("short") in boxes.volumes

    def test_bind_and_tmpfs(self, boxes: NsBox, tmp_path: Path):
        boxes.run(
            ["sh", "-c", "echo x > /data/x; echo y > /scratch/y; df /scratch | grep -q 1024"],
            volumes=[f"{tmp_path}:/data"],
            tmpfs=["/scratch:1M"],
            check=True,
        )
        assert (tmp_path / "x").read_text() == "x\n"


class TestNetwork:
    def test_a_box_shares_the_network_of_another(self, boxes: NsBox):
        server = "import socket; s = socket.create_server(('127.0.0.1', 7777)); print('up', flush=True)\n"
        server += "while True: s.accept()[0].sendall(b'hello')"
        client = "import socket; print(socket.create_connection(('127.0.0.1', 7777)).recv(9).decode())"
        with boxes.start([sys.executable, "-c", server], name="db", net=False) as db:
            wait_until(lambda: db.logs() == "up\n")
            assert boxes.run([sys.executable, "-c", client], net=db, check=True).stdout == "hello\n"
            with boxes.start(["sleep", "60"], net=db) as other:
                assert other.exec([sys.executable, "-c", client], check=True).stdout == "hello\n"
                assert other.inspect()["Networks"] == {"container:db": {}}
                assert other.inspect()["Namespaces"]["net"] == db.inspect()["Namespaces"]["net"]
            # The warden itself is where it was, and so are others.
            assert boxes.run([sys.executable, "-c", client], net=False).returncode == 1
            assert boxes.run(["readlink", "/proc/self/ns/net"]).stdout.strip() == os.readlink("/proc/self/ns/net")

    def test_one_that_has_ended_has_no_network(self, boxes: NsBox):
        db = boxes.start(["true"], name="db", net=False)
        db.wait()
        with pytest.raises(BoxFailed, match="net: the box 'db' is not running: it has no network to share"):
            boxes.run(["true"], net=db)


def frame(head: bytes) -> bytes:
    return len(head).to_bytes(4, "big") + bytes(4) + head


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"nonsense", id="no-frame"),
        pytest.param(frame(b'{"do": "list"}'), id="no-number"),
        pytest.param(frame(b"[" * 100_000), id="deep"),
        pytest.param(frame(b'{"n": 1, "do": ["list"]}'), id="odd-order"),
        pytest.param(
            frame(b'{"n": 1, "do": "start", "argv": ["true"], "env": {}, "spec": {"hostname": 5, "tmpfs": [[7, 7]]}}'),
            id="odd-spec",
        ),
    ],
)
def test_whatever_a_client_says_the_warden_serves_the_others(warden: Warden, boxes: NsBox, said: bytes):
    # A test in its box holds such a connection.
    with socket.socket(fileno=warden.connect().detach()) as client:
        client.sendall(said)
        answer = client.recv(1000)
        assert answer == b"" or b'"error": ' in answer
        assert boxes.run(["echo", "served"]).stdout == "served\n"
