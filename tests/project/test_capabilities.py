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


def test_a_controller_that_no_kernel_has_is_missing():
    assert capabilities.missing("cgroup:wings") == "no mounted hierarchy has the controller wings"


def test_a_program_is_looked_up_on_the_path():
    assert capabilities.missing("program:sh") is None
    assert capabilities.missing("program:no-such-thing") == "no program no-such-thing on PATH"
