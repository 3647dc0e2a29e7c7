"""Every outcome and everything a test can leave in a report."""

import logging
import os
import random
import subprocess
import sys
import warnings

import pytest

log = logging.getLogger("zoo")


random.seed(5)


class Odd(Exception):
    def __str__(self):
        return "odd ✓ text"


@pytest.fixture
def noisy():
    print("out of setup")
    log.warning("logged in setup")
    yield 5
    print("out of teardown")
    log.error("logged in teardown")


@pytest.fixture
def fails_in_setup():
    print("before the setup fails")
    raise RuntimeError("setup is broken")


@pytest.fixture
def fails_in_teardown():
    yield
    print("before the teardown fails")
    raise RuntimeError("teardown is broken")


@pytest.fixture
def skips():
    pytest.skip("the fixture skips")


def helper(value):
    local = [value] * 3
    return local[0] / 0


def test_passes(noisy):
    assert noisy == 5


def test_fails_with_introspection(noisy):
    print("printed before failing")
    print("to stderr", file=sys.stderr)
    log.info("below the level")
    log.warning("logged before failing")
    assert {"a": 1, "b": [1, 2, noisy]} == {"a": 1, "b": [1, 2, 4]}


def test_fails_in_a_helper():
    helper(3)


def test_fails_with_a_chain():
    try:
        helper(1)
    except ZeroDivisionError as error:
        raise Odd("x") from error


def test_fails_with_a_group():
    if sys.version_info < (3, 11):
        assert 0
    raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])


def test_recursion():
    test_recursion()


def test_syntax_error():
    eval("1 +")


def test_pytest_fail():
    pytest.fail("said so")


def test_pytest_fail_without_trace():
    pytest.fail("said so, without a trace", pytrace=False)


def test_error_in_setup(noisy, fails_in_setup):
    assert 0


def test_error_in_teardown(noisy, fails_in_teardown):
    print("passes")


def test_fails_and_error_in_teardown(fails_in_teardown):
    assert not "ok"


def test_missing_fixture(no_such_fixture):
    pass


def test_wrong_type():
    raise SystemExit(3)


@pytest.mark.skip(reason="by mark")
def test_skipped_by_mark():
    assert 0


@pytest.mark.skipif(os.sep == "/", reason="by condition")
def test_skipped_by_condition():
    assert 0


def test_skipped_in_the_test():
    pytest.skip("in the test")


def test_skipped_in_a_fixture(skips):
    assert 0


def test_importorskip():
    pytest.importorskip("no_such_module_here")


@pytest.mark.xfail(reason="known")
def test_xfails():
    assert 0


@pytest.mark.xfail(reason="known")
def test_xpasses():
    pass


@pytest.mark.xfail(strict=True, reason="strictly")
def test_xpasses_strictly():
    pass


@pytest.mark.xfail(raises=ZeroDivisionError)
def test_xfails_by_type():
    1 / 0


@pytest.mark.xfail(raises=KeyError)
def test_fails_by_another_type():
    1 / 0


@pytest.mark.xfail(run=False, reason="not even run")
def test_xfail_not_run():
    os._exit(1)


@pytest.mark.xfail(reason="the setup")
def test_xfails_in_setup(fails_in_setup):
    pass


def test_imperative_xfail():
    pytest.xfail("in the test")


def test_adds_its_own_marks(request):
    request.node.add_marker(pytest.mark.xfail(reason="added while running"))
    request.applymarker("labelled")
    assert 0


def test_properties(record_property):
    record_property("number", 5)
    record_property("text", "ä & <b>")
    record_property("object", (1, "two", None))


def test_properties_of_a_failure(record_property):
    record_property("before", 1.5)
    assert 0


@pytest.mark.parametrize("value", [0, 1, "ä", pytest.param(3, id="three", marks=pytest.mark.xfail), b"\xff", None])
@pytest.mark.parametrize("other", ["a/b", "", " "])
def test_parameters(value, other):
    assert value


def test_captures(capsys):
    print("to be read")
    assert capsys.readouterr().out == "to be read\n"
    print("left over")
    with capsys.disabled():
        pass
    assert 0


def test_captures_descriptors(capfd):
    os.write(1, b"raw\n")
    subprocess.run([sys.executable, "-S", "-c", "print('of a child')"], check=True)
    assert capfd.readouterr().out == "raw\nof a child\n"


def test_captures_bytes(capfdbinary):
    os.write(1, b"\xff\xfe")
    assert capfdbinary.readouterr().out == b"\xff\xfe"


def test_output_of_children():
    os.write(1, b"raw\n")
    subprocess.run(["sh", "-c", "echo of a child; echo and errors >&2"], check=True)
    print("after", end="")
    assert 0


def test_much_output():
    for number in range(5000):
        print(f"line {number} " + "x" * 60)
    os.write(2, b"binary \xff\xfe\n")
    assert 0


def test_logs(caplog):
    with caplog.at_level(logging.DEBUG):
        log.debug("a detail %s", 1)
    assert caplog.messages == ["a detail 1"]
    assert caplog.get_records("setup") == []
    log.warning("kept")
    assert 0


def test_warns():
    warnings.warn("plain warning")
    warnings.warn(DeprecationWarning("deprecated"), stacklevel=1)
    warnings.warn(pytest.PytestWarning("of pytest"))


def test_warns_and_fails():
    warnings.warn(UserWarning("with", "two args"))
    assert 0


@pytest.fixture
def warns_around():
    warnings.warn("in setup")
    yield
    warnings.warn("in teardown")


def test_warns_in_fixtures(warns_around):
    pass


@pytest.mark.filterwarnings("ignore:ignored")
def test_ignores_warnings():
    warnings.warn("ignored by mark")


@pytest.mark.filterwarnings("error")
def test_turns_warnings_into_errors():
    warnings.warn("as an error")


def test_expects_warnings():
    with pytest.warns(UserWarning, match="expected"):
        warnings.warn("expected")
    with pytest.deprecated_call():
        warnings.warn("old", DeprecationWarning)
    with pytest.warns(RuntimeWarning):
        pass


def test_same_warning_in_many_tests_1():
    warnings.warn("the same")


class _Unraisable:
    def __del__(self):
        raise ValueError("in __del__")


def test_unraisable():
    thing = _Unraisable()
    del thing


def test_thread_exception():
    import threading

    def run():
        raise ValueError("in a thread")

    thread = threading.Thread(target=run, name="the-thread")
    thread.start()
    thread.join()


def test_monkeypatch(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "getpid", lambda: 5)
    assert os.getpid() == 5 and os.environ["ZOO"] == "1"
    assert 0


def test_monkeypatch_is_undone():
    assert "ZOO" not in os.environ and os.getpid() != 5


def test_tmp_path(tmp_path, tmp_path_factory, tmpdir):
    (tmp_path / "file").write_text("x")
    assert tmp_path.name == "test_tmp_path0" and tmpdir == tmp_path
    assert tmp_path_factory.mktemp("other").name == "other0"


def test_tmp_path_again(tmp_path, tmp_path_factory):
    # Directories are shared between tests, so numbers go on.
    assert (tmp_path.parent / "test_tmp_path0" / "file").read_text() == "x"
    assert tmp_path_factory.mktemp("other").name == "other1"


def test_random_1(record_property):
    record_property("number", random.random())


def test_random_2(record_property):
    record_property("number", random.random())


def test_raises():
    with pytest.raises(ValueError, match="no") as caught:
        raise ValueError("no")
    assert caught.value.args == ("no",)
    with pytest.raises(KeyError):
        pass


def test_cache(pytestconfig):
    pytestconfig.cache.set("zoo/value", [1, 2])


def test_cache_is_kept(pytestconfig):
    assert pytestconfig.cache.get("zoo/value", None) == [1, 2]


def test_environment(request):
    assert os.environ["PYTEST_CURRENT_TEST"] == f"{request.node.nodeid} (call)"
    assert os.environ["PYTEST_VERSION"] == pytest.__version__


class TestXunit:
    def setup_class(cls):
        cls.value = [1]

    def setup_method(self, method):
        print("setup of", method.__name__)

    def teardown_method(self, method):
        print("teardown of", method.__name__)

    def test_one(self):
        assert self.value == [1]

    def test_two(self):
        assert self.value == [2]


class TestNested:
    class TestInner:
        @pytest.mark.usefixtures("noisy")
        def test_deep(self, request):
            assert request.cls is type(self)
            assert request.node.nodeid.endswith("TestNested::TestInner::test_deep")


def test_doctest_namespace(doctest_namespace):
    pass


def test_last_fails_with_source_of_a_module():
    import json

    json.loads("{")
