"""Tests that end in every way that pytest alone cannot tell."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from pytest_nsbox import BoxFailed, SandboxCrash, SandboxError, SandboxOOM, SandboxTimeout

EAT = "x = []\nwhile True: x.append(b'x' * 2**20)"


def eat():
    kept = []
    while True:
        kept.append(b"x" * 2**20)


@pytest.mark.sandbox(mem="64M")
def test_oom():
    print("before the end")
    print("and errors", file=sys.stderr)
    eat()


def test_after_oom():
    pass


@pytest.mark.sandbox(mem="64M")
@pytest.mark.xfail(raises=SandboxOOM)
def test_expected_oom():
    eat()


@pytest.mark.sandbox(mem="64M")
@pytest.mark.xfail(raises=SandboxTimeout)
def test_oom_is_no_timeout():
    eat()


@pytest.mark.sandbox(mem="64M")
def test_survives_the_oom_of_a_child():
    assert subprocess.run([sys.executable, "-c", EAT]).returncode == -9


@pytest.mark.sandbox(mem="64M")
def test_fails_by_the_oom_of_a_child():
    subprocess.run([sys.executable, "-c", EAT], check=True)


@pytest.mark.sandbox(pids=1)
def test_fails_by_the_limit_of_processes():
    subprocess.run(["true"], check=True)


@pytest.mark.sandbox(pids=1)
def test_outlives_the_limit_of_processes():
    with pytest.raises(BlockingIOError):
        subprocess.run(["true"], check=True)


def blocks_in_a_function():
    time.sleep(60)


# The one before passes: this one is forked ahead.
@pytest.mark.sandbox(timeout=1)
def test_timeout():
    print("before sleeping")
    thread = threading.Thread(target=threading.Event().wait, name="waits", daemon=True)
    thread.start()
    subprocess.Popen(["sleep", "1000"])
    blocks_in_a_function()


@pytest.mark.sandbox(timeout="500ms")
@pytest.mark.xfail(raises=SandboxTimeout)
def test_expected_timeout():
    time.sleep(60)


@pytest.mark.sandbox(timeout=0.5)
def test_timeout_of_a_test_that_blocks_every_signal():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        pass


@pytest.mark.sandbox(timeout=0.5)
def test_timeout_of_a_stopped_test():
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.fixture
def slow():
    time.sleep(60)


@pytest.mark.sandbox(timeout=0.5)
def test_timeout_in_setup(slow):
    pass


@pytest.fixture
def slow_end():
    yield
    print("slow end begins")
    time.sleep(60)


@pytest.mark.sandbox(timeout=0.5)
def test_timeout_in_teardown(slow_end):
    pass


def test_segfault():
    print("before the crash")
    crashes_in_a_function()


def crashes_in_a_function():
    ctypes.string_at(0)


def test_abort():
    os.abort()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGUSR1", "SIGBUS", "SIGRTMIN"])
def test_signal(name):
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(5)


@pytest.mark.sandbox(ulimits={"cpu": 1})
def test_cpu_seconds():
    while True:
        pass


@pytest.mark.xfail(raises=SandboxCrash)
def test_expected_crash():
    os._exit(1)


@pytest.mark.xfail(raises=SandboxError)
def test_expected_by_the_base_class():
    os._exit(1)


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_exit(status):
    print("printed")
    os._exit(status)


@pytest.fixture
def exits_in_setup():
    print("printed in setup")
    os._exit(4)
    yield


def test_exit_in_setup(exits_in_setup):
    pass


@pytest.fixture
def exits_in_teardown():
    yield
    print("printed in teardown")
    os._exit(5)


def test_exit_in_teardown(exits_in_teardown):
    print("printed in call")


def test_exit_after_a_failure(exits_in_teardown):
    assert 0, "the failure before"


class TestInClass:
    def test_exit(self):
        os._exit(6)


def test_leaves_processes_and_threads():
    """None of them may keep the box: it ends with the test."""
    subprocess.Popen(["sleep", "1000"])
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    threading.Thread(target=time.sleep, args=(1000,)).start()


def test_closes_every_descriptor():
    os.closerange(3, 5000)


def test_writes_rubbish_to_every_descriptor():
    for fd in range(3, 100):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                os.write(fd, b"\xff" * 100)
        except OSError:
            pass


def test_last():
    pass
