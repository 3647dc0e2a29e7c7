"""pytest's private parts do what lockstep needs of them, on this version of pytest."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from typing import Any

import pytest

from pytest_nsbox import internals, output


class Log:
    """Wrappers of a hook in every shape, and what their halves saw."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def make(self, shape: str) -> object:
        lines = self.lines

        class New:
            @pytest.hookimpl(wrapper=True)
            def pytest_runtest_setup(self) -> Generator[None, object, object]:
                lines.append("new >")
                try:
                    return (yield)
                finally:
                    lines.append("new <")

        class Old:
            @pytest.hookimpl(hookwrapper=True)
            def pytest_runtest_setup(self) -> Generator[None, Any, None]:
                lines.append("old >")
                outcome = yield
                lines.append(f"old < {outcome.excinfo and outcome.excinfo[0].__name__}")

        return {"new": New, "old": Old}[shape]()


@pytest.mark.parametrize("shape", ["new", "old"])
def test_wrappers_that_a_fork_leaves_never_see_their_second_half(pytester: pytest.Pytester, shape: str):
    log = Log()
    undone = []

    class Forks:
        @pytest.hookimpl(trylast=True)
        def pytest_runtest_setup(self) -> None:
            raise internals.Forked(lambda: undone.append(True))

    item = pytester.getitem("def test_func(): pass")
    item.config.pluginmanager.register(log.make(shape))
    item.config.pluginmanager.register(Forks())
    with pytest.raises(internals.Forked) as left:
        internals.call_leavable(item.config, item.ihook.pytest_runtest_setup, {"item": item})
    left.value.undo()
    assert undone == [True]
    del left
    gc.collect()
    assert log.lines == [f"{shape} >"]


@pytest.mark.parametrize("shape", ["new", "old"])
def test_wrappers_see_every_other_end(pytester: pytest.Pytester, shape: str):
    log = Log()

    class Fails:
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_setup(self) -> None:
            raise ValueError

    item = pytester.getitem("def test_func(): pass")
    item.config.pluginmanager.register(log.make(shape))
    item.config.pluginmanager.register(Fails())
    with pytest.raises(ValueError):  # noqa: PT011 - it has no text
        internals.call_leavable(item.config, item.ihook.pytest_runtest_setup, {"item": item})
    assert log.lines == [f"{shape} >", {"new": "new <", "old": "old < ValueError"}[shape]]


def test_pytests_own_hooks_are_told_from_others(pytester: pytest.Pytester):
    config = pytester.parseconfigure()
    called = []

    class Foreign:
        def pytest_report_header(self) -> str:
            called.append(True)
            return "foreign"

    config.pluginmanager.register(Foreign())
    lines = internals.call_own(
        config, config.pluginmanager.hook.pytest_report_header, {"config": config, "start_path": config.rootpath}
    )
    assert not called
    assert any("rootdir" in str(line) for line in lines)


def test_interception_reaches_every_way_to_a_hook_and_can_be_undone(pytester: pytest.Pytester):
    item = pytester.getitem("def test_func(): pass")
    session = item.session
    before = session.config.hook
    seen: list[str] = []

    def action(caller: Any, kwargs: dict[str, Any]) -> Any:
        seen.append(caller.name)
        return caller(**kwargs)

    undo = internals.intercept(session, {"pytest_runtest_logstart": action})
    arguments = {"nodeid": item.nodeid, "location": item.location}
    item.ihook.pytest_runtest_logstart(**arguments)
    session.config.hook.pytest_runtest_logstart(**arguments)
    session.gethookproxy(item.path).pytest_runtest_logstart(**arguments)
    item.ihook.pytest_runtest_logfinish(**arguments)
    assert seen == ["pytest_runtest_logstart"] * 3
    assert item.ihook.pytest_runtest_logstart.spec is not None
    undo()
    item.ihook.pytest_runtest_logstart(**arguments)
    assert len(seen) == 3
    assert session.config.hook is before


SCOPES = """
    import pytest

    @pytest.fixture(scope="session")
    def of_session(): return 1

    @pytest.fixture(scope="package")
    def of_package(of_session): return 2

    @pytest.fixture(scope="module", params=[1, 2])
    def of_module(request): return 3

    @pytest.fixture(scope="class")
    def of_class(): return 4

    @pytest.fixture
    def of_function(): return 5

    @pytest.fixture(autouse=True, scope="module")
    def automatic(): pass

    def test_function(of_function, of_class, of_module, of_package): pass

    @pytest.mark.parametrize("of_session", [7], indirect=True)
    def test_given(of_session): pass

    @pytest.mark.parametrize("plain", [7])
    def test_direct(plain): pass

    class TestIt:
        def test_method(self, of_function, of_class): pass
"""


def test_outer_fixtures_are_those_that_outlive_the_test_in_pytests_order(pytester: pytest.Pytester):
    items = {item.name: item for item in pytester.getitems(SCOPES)}
    assert list(internals.outer_fixture_names(items["test_function[1]"])) == [
        "of_session",
        "of_package",
        "automatic",
        "of_module",
    ]
    assert list(internals.outer_fixture_names(items["test_method"])) == ["automatic", "of_class"]
    assert "of_session" in list(internals.outer_fixture_names(items["test_given[7]"]))
    assert list(internals.outer_fixture_names(items["test_direct[7]"])) == ["automatic"]
    assert list(internals.fixture_arguments(items["test_function[1]"], "of_package")) == ["of_session"]


def test_the_teardown_of_outer_nodes_is_told_by_the_next_item(pytester: pytest.Pytester):
    items = pytester.getitems("def test_a(): pass\n\ndef test_b(): pass\n\nclass TestC:\n    def test_c(self): pass")
    first, second, third = items
    state = first.session._setupstate
    state.setup(first)
    try:
        assert internals.ends_outer_nodes(first, None)
        assert first in state.stack
        assert not internals.ends_outer_nodes(first, second)
        assert first not in state.stack
        state.setup(second)
        assert not internals.ends_outer_nodes(second, third)
        state.setup(third)
        assert internals.ends_outer_nodes(third, first)
    finally:
        state.teardown_exact(None)


def test_the_child_keeps_only_what_it_adds(pytester: pytest.Pytester):
    item = pytester.getitem("def test_func(): pass")
    state = item.session._setupstate
    state.setup(item)
    ran: list[str] = []
    module = item.getparent(pytest.Module)
    assert module is not None
    state.addfinalizer(lambda: ran.append("of the parent"), module)
    state.addfinalizer(lambda: ran.append("of the item"), item)
    internals.keep_only_item_in_child(item)
    state.addfinalizer(lambda: ran.append("added in the child"), module)
    state.teardown_exact(item)
    assert ran == ["of the item", "added in the child"]


def test_own_frames_are_taken_out_of_a_traceback(monkeypatch: pytest.MonkeyPatch):
    package = os.path.dirname(internals.__file__)
    namespace: dict[str, Any] = {}
    for name, inner, path in (
        ("user", "1 / 0", "user.py"),
        ("ours", "user()", f"{package}/protocol.py"),
        ("also", "ours()", f"{package}/internals.py"),
        ("pytests", "also()", "pytests.py"),
    ):
        exec(compile(f"def {name}(): {inner}", path, "exec"), namespace)
    with pytest.raises(ZeroDivisionError) as caught:
        namespace["pytests"]()
    internals.drop_own_frames(caught)
    assert [entry.name for entry in caught.traceback][1:] == ["pytests", "user"]


def test_sections_of_the_next_report_can_be_set(pytester: pytest.Pytester):
    item = pytester.getitem("def test_func(): pass")
    item.add_report_section("setup", "stdout", "old")
    internals.set_report_sections(item, [("Captured stdout call", "out"), ("Captured log setup", "log")])
    assert item._report_sections == [("call", "stdout", "out"), ("setup", "log", "log")]


def test_warnings_are_handed_to_who_records_them():
    import warnings

    message = warnings.WarningMessage(UserWarning("x"), UserWarning, "file.py", 3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        internals.replay_warning(message)
    assert [(str(one.message), one.filename, one.lineno) for one in seen] == [("x", "file.py", 3)]


def test_it_is_known_when_a_test_prints_to_pytests_terminal(pytester: pytest.Pytester):
    assert not output.prints_meanwhile(pytester.parseconfigure())
    for args in (["-s"], ["--setup-show"], ["--pdb"], ["-o", "log_cli=true"], ["--capture=tee-sys"]):
        assert output.prints_meanwhile(pytester.parseconfigure(*args)), args
