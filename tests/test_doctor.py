"""The doctor: what it prints, its exit code, and what --sandbox-unavailable makes of its findings."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pytest_nsbox import doctor, real
from pytest_nsbox.doctor import (
    Examination,
    examine,
    for_spec,
    no_linux,
    read_examination,
    settle,
    survey,
    tell,
    try_box,
)
from pytest_nsbox.options import Settings
from pytest_nsbox.policy import capability as cap
from pytest_nsbox.policy.capability import Capability, Surroundings
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.settings import SPEC

PIECES = [name for name in cap.ESSENTIAL if name != cap.BOX]
GOOD = [Capability(name, works=True) for name in (*PIECES, cap.NET, cap.CGROUP, "cgroup memory", "cgroup pids")]


@pytest.fixture(autouse=True)
def only_this_plugin(monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_nsbox.plugin")


def lacking(*missing: Capability, cgroup_version: int | None = 1) -> Examination:
    names = {capability.name for capability in missing}
    found = [*(capability for capability in GOOD if capability.name not in names), *missing]
    return Examination(Surroundings(), found, cgroup_version)


OVERLAY = Capability(cap.OVERLAY, works=False, why="mount overlay: No such device", fix="modprobe overlay")
NET = Capability(
    cap.NET, works=False, why="unshare net: No space left on device", fix="sysctl -w user.max_net_namespaces=1"
)
MEMORY = Capability("cgroup memory", works=False, why="disabled at boot", fix="boot with cgroup_enable=memory")
GROUPS = Capability(cap.CGROUP, works=False, why="no cgroup file system is mounted", fix="mount it")


# --- the text -------------------------------------------------------------------------------------------------------


def test_a_machine_with_everything_is_told_in_one_list_and_a_verdict():
    seen = lacking()
    lines = tell(seen)
    assert lines[0].startswith("pytest-nsbox ")
    assert "  ok       overlay" in lines
    assert lines[-1] == "Tests can run in boxes here."
    assert seen.works


def test_a_missing_essential_piece_is_told_with_reason_and_fix_and_means_no():
    seen = lacking(OVERLAY)
    text = "\n".join(tell(seen))
    assert "  MISSING  overlay" in text
    assert "mount overlay: No such device" in text
    assert "fix: modprobe overlay" in text
    assert text.endswith("Tests cannot run in boxes here: overlay missing.")
    assert not seen.works


def test_a_missing_lesser_piece_is_told_with_what_it_takes_away_and_still_means_yes():
    seen = lacking(NET, MEMORY)
    text = "\n".join(tell(seen))
    assert "  missing  network namespaces" in text
    assert "without it: no net=False" in text
    assert "fix: sysctl -w user.max_net_namespaces=1" in text
    assert "without it: no limits by cgroup memory" in text
    assert text.endswith("Tests can run in boxes here, without network namespaces, cgroup memory.")
    assert seen.works


def test_a_box_that_fails_although_every_piece_works_means_no():
    seen = lacking(cap.judge_box("mount tmpfs /x: Operation not permitted\nmore", Surroundings()))
    text = "\n".join(tell(seen))
    assert "  MISSING  a whole box" in text
    assert "mount tmpfs /x: Operation not permitted" in text
    assert "fix: none is known: please report this text" in text
    assert text.endswith("Tests cannot run in boxes here: every piece works, and yet making a box failed.")
    assert not seen.works


@pytest.mark.parametrize(
    ("around", "text"),
    [
        (Surroundings(), ", root"),
        (Surroundings(sys_admin=False), ", root, without CAP_SYS_ADMIN"),
        (Surroundings(uid=1000, sys_admin=False), ", user id 1000"),
        (Surroundings(initial_userns=False, container="podman"), ", root, in a user namespace, podman container"),
        (Surroundings(seccomp_filter=True), ", root, under a seccomp filter"),
    ],
)
def test_the_second_line_tells_where_pytest_runs(around, text):
    assert tell(Examination(around, GOOD))[1].endswith(text)


def test_another_system_than_linux_is_told_to_use_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    seen = examine()
    assert not seen.works
    text = "\n".join(tell(seen))
    assert "this is darwin; boxes are made of Linux namespaces" in text
    assert "fix: run the tests on Linux: a machine, a virtual machine, WSL 2, or a Linux container" in text


# --- a whole box and the option -------------------------------------------------------------------------------------


@pytest.mark.needs("root", "overlay", "user namespace", "cgroup:memory")
def test_the_doctor_makes_a_box_says_yes_and_runs_no_test(pytester):
    pytester.makepyfile("def test_a(): assert 0")
    result = pytester.runpytest_subprocess("--sandbox-doctor")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["pytest-nsbox *: what works here", "  ok * a whole box", "Tests can run in boxes here*"]
    )
    result.stdout.no_fnmatch_line("*test_a*")


def test_the_doctor_says_no_with_exit_code_1(pytester, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda _: lacking(OVERLAY))
    result = pytester.runpytest_inprocess("--sandbox-doctor")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["  MISSING *overlay*", "*fix: modprobe overlay", "*cannot run in boxes here: overlay missing."]
    )


def test_a_doctor_whose_tries_do_not_run_says_so_with_exit_code_1(pytester, monkeypatch):
    def broken(_: object) -> Examination:
        raise BoxFailed("the doctor's tries did not run: no memory")

    monkeypatch.setattr(doctor, "examine", broken)
    result = pytester.runpytest_inprocess("--sandbox-doctor")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["the doctor's tries did not run: no memory"])


def test_no_box_is_tried_where_a_piece_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda _: lacking(OVERLAY))
    monkeypatch.setattr(doctor, "try_box", lambda _: pytest.fail("tried"))
    assert cap.BOX not in [capability.name for capability in survey(Settings()).capabilities]


@pytest.mark.parametrize(("problem", "works"), [("", True), ("mount: Operation not permitted", False)])
def test_a_box_that_was_tried_is_one_more_capability(monkeypatch, problem, works):
    monkeypatch.setattr(doctor, "examine", lambda _: lacking())
    monkeypatch.setattr(doctor, "try_box", lambda _: problem)
    seen = survey(Settings())
    assert seen.works is works
    assert for_spec(Spec(), seen, "skip").action == ("box" if works else "skip")


def test_a_warden_that_does_not_start_is_told(monkeypatch):
    def fails(*_: object, **__: object) -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(real.os, "posix_spawn", fails)
    assert try_box(Settings()) == "the warden does not start: [Errno 11] Resource temporarily unavailable"


# --- the tries ------------------------------------------------------------------------------------------------------


def test_the_examination_comes_back_from_a_process_of_its_own():
    seen = examine("/nsbox")
    names = [capability.name for capability in seen.capabilities]
    assert set(cap.ESSENTIAL) - {cap.LINUX, cap.BOX} <= set(names)
    assert cap.CGROUP in names
    assert seen.around.kernel > (3, 0)


def test_an_interpreter_that_does_not_start_is_told():
    with pytest.raises(BoxFailed, match=r"the doctor's tries did not run: .*No such file or directory: '/no/python'"):
        examine(python="/no/python")


def test_tries_that_end_without_an_answer_are_told_with_what_they_wrote(monkeypatch):
    def broken(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="ImportError: no ctypes\n")

    monkeypatch.setattr(subprocess, "run", broken)
    with pytest.raises(BoxFailed, match="the doctor's tries ended without an answer: ImportError: no ctypes"):
        examine()


def test_the_probes_json_is_read_back():
    document = {
        "around": {"uid": 1000, "kernel": [6, 1], "container": "docker"},
        "capabilities": [{"name": "overlay", "works": False, "why": "w", "fix": "f"}],
        "cgroup_version": 2,
    }
    seen = read_examination(json.loads(json.dumps(document)))
    assert seen.around == Surroundings(uid=1000, kernel=(6, 1), container="docker")
    assert list(seen.capabilities) == [Capability("overlay", works=False, why="w", fix="f")]
    assert seen.cgroup_version == 2


# --- --sandbox-unavailable ------------------------------------------------------------------------------------------


def test_a_test_gets_its_box_when_only_what_it_does_not_use_is_missing():
    seen = lacking(NET, MEMORY)
    assert for_spec(Spec(pids=10), seen, "fail").action == "box"


def test_a_limit_whose_controller_is_missing_fails_by_default_with_the_fix():
    decision = for_spec(Spec(mem=2**20, swap=0), lacking(MEMORY), "fail")
    assert decision.action == "fail"
    assert "cgroup memory: disabled at boot; fix: boot with cgroup_enable=memory" in decision.text


def test_a_limit_is_never_silently_dropped_where_no_cgroup_works():
    seen = lacking(GROUPS, cgroup_version=None)
    decision = for_spec(Spec(pids=10), seen, "skip")
    assert decision.action == "skip"
    assert "cgroup pids: no cgroup file system is mounted; fix: mount it" in decision.text
    assert for_spec(Spec(), seen, "skip").action == "box"


def test_no_network_is_asked_for_by_net_false_only():
    seen = lacking(NET)
    assert for_spec(Spec(net="none"), seen, "run").action == "run"
    assert for_spec(Spec(), seen, "run").action == "box"


def test_nothing_works_on_another_system():
    seen = Examination(Surroundings(), [no_linux("win32")])
    decision = for_spec(Spec(), seen, "skip")
    assert decision.action == "skip"
    assert "this is win32" in decision.text


@pytest.fixture
def three(pytester, monkeypatch):
    """Items with the specs: no limit, net=False, none; on a machine without network namespaces."""
    monkeypatch.setattr(doctor, "examine", lambda _: lacking(NET))
    monkeypatch.setattr(doctor, "try_box", lambda _: "")
    items = pytester.getitems("def test_a(): pass\ndef test_b(): pass\ndef test_c(): pass")
    specs = dict(zip(items, [Spec(), Spec(net="none"), None], strict=True))
    for item, spec in specs.items():
        if spec is not None:
            item.stash[SPEC] = spec
    return specs


def test_a_test_that_cannot_have_its_box_is_skipped_with_the_reason_and_the_user_is_told(three):
    plain, netless, _ = three
    assert settle(three, Settings(unavailable="skip")) == [
        f"sandbox: 1 test(s) are skipped: no box can be made here: {NET}"
    ]
    assert list(three.values()) == [Spec(), None, None]
    assert SPEC in plain.stash
    assert SPEC not in netless.stash
    mark = netless.get_closest_marker("skip")
    assert mark.kwargs["reason"].startswith("no box can be made here: network namespaces: ")


def test_a_test_that_cannot_have_its_box_runs_plainly_when_asked_to_and_the_user_is_told(three):
    _, netless, _ = three
    (line,) = settle(three, Settings(unavailable="run"))
    assert line.startswith("sandbox: 1 test(s) run without a box: no box can be made here: network namespaces: ")
    assert SPEC not in netless.stash
    assert netless.get_closest_marker("skip") is None


def test_by_default_nothing_is_tried_ahead(three, monkeypatch):
    monkeypatch.setattr(doctor, "survey", lambda _: pytest.fail("tried"))
    assert settle(three, Settings()) == []
    assert list(three.values()) == [Spec(), Spec(net="none"), None]
