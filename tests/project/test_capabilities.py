"""A missing capability skips with its reason, or fails where everything must be there."""

from __future__ import annotations

import pytest

from tests import capabilities


@pytest.fixture(autouse=True)
def one_capability_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(capabilities.PROBES, "wings", lambda: "pigs have none")
    monkeypatch.setitem(capabilities.PROBES, "legs", lambda: None)
    monkeypatch.delenv("NSBOX_VM", raising=False)


def test_a_capability_that_is_there_lets_the_test_run():
    capabilities.require("legs")


def test_a_missing_capability_skips_and_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NSBOX_REQUIRE_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs wings: pigs have none"):
        capabilities.require("legs", "wings")


def test_a_missing_capability_fails_where_all_are_required(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NSBOX_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match=r"needs wings, which must be here .*: pigs have none"):
        capabilities.require("wings")


def test_a_list_requires_what_it_names_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NSBOX_REQUIRE_ALL", "legs, overlay")
    with pytest.raises(pytest.skip.Exception):
        capabilities.require("wings")
    monkeypatch.setenv("NSBOX_REQUIRE_ALL", "legs,wings")
    with pytest.raises(pytest.fail.Exception, match=r"\(NSBOX_REQUIRE_ALL=legs,wings\): pigs have none"):
        capabilities.require("wings")


@pytest.mark.parametrize(("tier", "excused"), [("uml", True), ("qemu", False), ("", False)])
def test_each_machine_is_excused_from_what_its_kernel_cannot_have(
    monkeypatch: pytest.MonkeyPatch, tier: str, excused: bool
):
    monkeypatch.setenv("NSBOX_REQUIRE_ALL", "1")
    monkeypatch.setenv("NSBOX_VM", tier)
    monkeypatch.setitem(capabilities.PROBES, "time namespace", lambda: "there is none")
    with pytest.raises(pytest.skip.Exception if excused else pytest.fail.Exception):
        capabilities.require("time namespace")


def test_what_takes_minutes_is_required_on_request(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NSBOX_REQUIRE_ALL", "1")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("NSBOX_QEMU", raising=False)
    with pytest.raises(pytest.skip.Exception, match="it boots only with NSBOX_QEMU=1"):
        capabilities.require("vm qemu")
    monkeypatch.setenv("NSBOX_QEMU", "1")
    with pytest.raises(pytest.fail.Exception, match="no program qemu-system-x86_64 on PATH"):
        capabilities.require("vm qemu")


def test_a_controller_that_no_kernel_has_is_missing():
    assert capabilities.missing("cgroup:wings") == "no mounted hierarchy has the controller wings"


def test_a_program_is_looked_up_on_the_path():
    assert capabilities.missing("program:sh") is None
    assert capabilities.missing("program:no-such-thing") == "no program no-such-thing on PATH"
