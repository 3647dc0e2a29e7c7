"""The systemd driver, on a Debian that booted with systemd in the virtual machine: one boot for all, then some ten
seconds for each that is chosen. What is marked slow is left out of `tox -e vm`.
"""

from __future__ import annotations

import pytest

from tests.acceptance.test_rootless import LIMITED
from tests.vm.system import Done, run_on_systemd

pytestmark = pytest.mark.needs("vm systemd", "root", "debian archive", "program:mmdebstrap", "program:mke2fs")

SLEEPS = """
import time

def test_sleeps():
    time.sleep(600)
"""
LEFT = "find /sys/fs/cgroup -name 'nsbox-*.scope'; find /sys/fs/cgroup -name 'box-*'"
KILLED = f"""
runuser -u tester -- run-pytest --sandbox-all test_sleeps.py >/dev/null 2>&1 &
for n in $(seq 300); do [ -n "$(find /sys/fs/cgroup -name box-1)" ] && break; sleep 0.1; done
{LEFT}
kill -9 $(pgrep -u tester -f pytest_nsbox.plugin)
for n in $(seq 300); do [ -z "$({LEFT})" ] && break; sleep 0.1; done
echo left: $({LEFT})
"""
# In this order: the first fills the caches of compiled modules for the others.
COMMANDS = {
    "root": f"run-pytest --sandbox-all test_limits.py; {LEFT}",
    "user": f"runuser -u tester -- run-pytest --sandbox-all test_limits.py; {LEFT}",
    "login": "su -l tester -c 'cat /proc/self/cgroup; run-pytest test_limits.py'",
    "killed": KILLED,
    "nobody asked": "runuser -u stranger -- run-pytest --sandbox-all test_limits.py",
    "the command": "systemd-run --pipe --wait --collect -p Delegate=yes --uid=1001 run-pytest test_limits.py 2>&1",
    "doctor": "runuser -u tester -- run-pytest --sandbox-doctor",
}


def on(command: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("text", [command], indirect=True)


@pytest.fixture(scope="module")
def done(request: pytest.FixtureRequest) -> dict[str, Done]:
    """What each command that a chosen test is about gave."""
    calls = (getattr(item, "callspec", None) for item in request.session.items if item.path == request.path)
    wanted = {call.params["text"] for call in calls if call is not None}
    commands = {name: command for name, command in COMMANDS.items() if name in wanted}
    files = {"test_limits.py": LIMITED, "test_sleeps.py": SLEEPS}
    return dict(zip(commands, run_on_systemd(list(commands.values()), files), strict=True))


@pytest.fixture
def text(request: pytest.FixtureRequest, done: dict[str, Done]) -> str:
    return done[request.param].text


def is_limited(text: str) -> None:
    assert "1 failed, 1 passed" in text, text
    assert "OOM-killed: memory limit 64.0 MiB, peak 64.0 MiB" in text


@on("root")
def test_the_system_manager_gives_root_a_scope_and_takes_it_back(text: str) -> None:
    is_limited(text)
    assert "sandbox: cgroup v2 (systemd); on: cpu, cpu_shares, mem, swap, pids; off: cpuset" in text
    assert "/sys/fs/cgroup/" not in text.partition("short test summary")[2], text


@on("user")
def test_the_users_manager_gives_a_user_a_scope_and_takes_it_back(text: str) -> None:
    is_limited(text)
    assert "sandbox: every test in a box, rootless" in text
    assert "/sys/fs/cgroup/" not in text.partition("short test summary")[2], text


@pytest.mark.slow
@on("login")
def test_it_does_so_from_a_login_session_of_the_system(text: str) -> None:
    assert "0::/user.slice/user-1000.slice/session-" in text
    is_limited(text)


@pytest.mark.slow
@on("killed")
def test_a_pytest_that_was_killed_leaves_no_scope(text: str) -> None:
    before, _, after = text.partition("left:")
    assert "/user.slice/user-1000.slice/user@1000.service/app.slice/nsbox-" in before
    assert after.strip() == ""


@pytest.mark.slow
@on("nobody asked")
def test_without_a_manager_the_error_names_the_command(text: str) -> None:
    assert "sandbox: no cgroup; off: cpu, cpu_shares, cpuset, mem, swap, pids, usage of memory and CPU" in text
    assert (
        "the cgroup controller memory cannot be used: user id 1001 has no running systemd manager with a bus "
        "(/run/user/1001/bus); sudo systemd-run --pty --same-dir --wait --collect -p Delegate=yes --uid=1001 pytest"
    ) in text


@pytest.mark.slow
@on("the command")
def test_the_command_of_that_error_gives_the_user_limits(text: str) -> None:
    is_limited(text)


@pytest.mark.slow
@on("doctor")
def test_the_doctor_names_the_driver(text: str) -> None:
    assert "Cgroup Driver: systemd\nCgroup Version: 2\nSecurity Options: rootless\n" in text.replace("\r", "")
