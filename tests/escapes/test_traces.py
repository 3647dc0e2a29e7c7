"""What a test makes by name is not seen outside its box, neither while it lives nor after."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.escapes.attempt import NETS, in_a_process
from tests.escapes.host import log_in
from tests.escapes.network import loopback_up
from tests.escapes.system import MS_PRIVATE, MS_REC, NEWNET, NEWNS, mount, unshare
from tests.escapes.traces import NEWIPC, NEWUTS, TRACES, Trace

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "cgroup:memory")

HERE = Path(__file__).parent


def new_tag() -> str:
    return f"nsbox-trace-{os.getpid()}-{secrets.randbits(30):x}"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[bool, bool]]]:
    """{net: {trace: (whether the host sees it while the box lives, and after)}}."""
    suite, shared = tmp_path_factory.mktemp("suite"), tmp_path_factory.mktemp("shared")
    shutil.copy(HERE / "maker.py", suite / "test_maker.py")
    (suite / "pytest.ini").write_text(f"[pytest]\nsandbox_shared_paths = {shared}\n")
    tags = {net: new_tag() for net in NETS}
    for net, tag in tags.items():
        (shared / f"tag-{net}").write_text(tag)
    # With the kernel's keys, which tests have only if they say so.
    options = ("--sandbox-all", "--sandbox-set=mem=64M", "--sandbox-set=seccomp=none")
    command = [sys.executable, "-m", "pytest", "-p", "nsbox", *options, "-q"]
    environment = {
        **os.environ,
        "NSBOX_SHARED": str(shared),
        "PYTHONPATH": str(HERE.parents[1]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
    }
    base_temp = tmp_path_factory.mktemp("base")
    with subprocess.Popen(
        [*command, "-p", "no:cacheprovider", f"--basetemp={base_temp}"],
        cwd=suite,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as inner:
        alive: dict[str, dict[str, bool]] = {}
        for net in NETS:
            while inner.poll() is None and not (shared / f"made-{net}").exists():
                time.sleep(0.01)
            alive[net] = look(tags[net])
            (shared / f"seen-{net}").touch()
        output, _ = inner.communicate(timeout=60)
    assert inner.returncode == 0, output
    after = {net: look(tags[net]) for net in NETS}
    return {net: {name: (alive[net][name], after[net][name]) for name in TRACES} for net in NETS}


def look(tag: str) -> dict[str, bool]:
    return {trace.name: trace.seen(tag) for trace in TRACES.values()}


def made_outside(trace: Trace, tag: str) -> str:
    """Make and see it in namespaces that are gone with this process."""
    unshare(NEWNS | NEWUTS | NEWIPC | NEWNET)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    if trace.net:
        loopback_up()
    # Else a key would come to lie in the keyring of all root's sessions.
    with suppress(OSError):
        log_in()
    kept = trace.make(tag)
    try:
        return str(trace.seen(tag))
    finally:
        trace.remove(tag)
        del kept


# With the host's network, what is made in it is the host's to see.
CASES = [
    pytest.param(trace, net, id=f"{name}-{net}")
    for name, trace in TRACES.items()
    for net in (("none",) if trace.net else NETS)
]


@pytest.mark.parametrize(("trace", "net"), CASES)
def test_what_a_test_makes_is_seen_in_its_box_alone(
    trace: Trace, net: str, seen: dict[str, dict[str, tuple[bool, bool]]]
):
    if not os.path.exists(trace.needs):
        pytest.skip(f"this kernel has no {trace.needs}")
    assert in_a_process(lambda: made_outside(trace, new_tag())) == "True", "it is not even seen outside"
    assert seen[net][trace.name] == (trace.shown, False)
