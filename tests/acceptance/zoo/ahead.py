"""Tests in a row that pass, with one of every kind that does not between them."""

import os
import random
import sys
import time
import warnings

import pytest

LEFT = []


@pytest.fixture(autouse=True)
def times(record_property):
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(") ")[2].split()[19])
    record_property("time.born", ticks / os.sysconf("SC_CLK_TCK"))
    record_property("time.began", time.clock_gettime(time.CLOCK_BOOTTIME))
    yield
    record_property("time.ended", time.clock_gettime(time.CLOCK_BOOTTIME))


@pytest.mark.parametrize("number", range(6))
def test_in_a_row(number):
    # As long as pytest may need to fork the next on a busy machine, where a test looks at that.
    time.sleep(float(os.environ.get("NSBOX_ROW", "0")))


def test_random_goes_on(record_property):
    random.seed(7)
    record_property("random", random.random())


def test_from_there(record_property):
    record_property("random", random.random())


def test_and_on(record_property):
    record_property("random", random.random())


def test_prints(capsys):
    print("to standard output")
    print("to standard error", file=sys.stderr)
    assert capsys.readouterr().out


def test_prints_for_the_report():
    print("to standard output")
    print("to standard error", file=sys.stderr)


def test_after_output():
    pass


def test_warns():
    warnings.warn("of something", stacklevel=1)


@pytest.mark.filterwarnings("error")
def test_filters():
    with pytest.raises(UserWarning):
        warnings.warn("of something", stacklevel=1)


def test_warns_too():
    warnings.warn("of something else", stacklevel=1)


@pytest.mark.skipif(False, reason="never")
def test_is_not_skipped():
    pass


@pytest.mark.skipif(condition=False, reason="never")
@pytest.mark.skipif(True, reason="always")
def test_is_skipped():
    raise AssertionError


@pytest.mark.skipif("LEFT", reason="after another test")
def test_is_not_skipped_by_a_text():
    pass


@pytest.mark.skipif(False)
def test_has_no_reason():
    pass


@pytest.mark.skip(reason="always")
def test_is_always_skipped():
    raise AssertionError


def test_skips_itself():
    pytest.skip("in the call")


@pytest.fixture
def skips():
    pytest.skip("in the setup")


def test_is_skipped(skips):
    raise AssertionError


@pytest.mark.skip
def test_never():
    raise AssertionError


@pytest.mark.xfail
def test_xfails():
    raise AssertionError


@pytest.mark.xfail
def test_xpasses():
    pass


@pytest.mark.parametrize("number", range(3))
def test_another_row(number):
    pass


def test_fails():
    raise AssertionError("on purpose")


@pytest.mark.parametrize("number", range(3))
def test_a_row_after_a_failure(number):
    pass


def test_ends_the_process():
    os._exit(3)


@pytest.mark.parametrize("number", range(3))
def test_a_row_after_a_death(number):
    pass


@pytest.fixture
def fails_late():
    yield
    raise RuntimeError("in the teardown")


def test_fails_late(fails_late):
    pass


@pytest.mark.parametrize("number", range(3))
def test_a_row_after_a_late_failure(number):
    pass


@pytest.fixture(scope="module")
def outer():
    LEFT.append("outer")
    yield LEFT
    LEFT.remove("outer")


@pytest.mark.parametrize("number", range(3))
def test_outer(outer, number):
    assert outer == ["outer"]


@pytest.fixture(scope="module", params=["a", "b"])
def each(request):
    LEFT.append(request.param)
    yield request.param
    LEFT.remove(request.param)


@pytest.mark.parametrize("number", range(3))
def test_each(each, number):
    assert each in LEFT


class TestClass:
    @pytest.fixture(scope="class")
    def of_class(self):
        LEFT.append("class")
        yield
        LEFT.remove("class")

    @pytest.mark.parametrize("number", range(3))
    def test_method(self, of_class, number):
        assert "class" in LEFT


@pytest.mark.parametrize("number", range(3))
def test_after_the_class(number, request):
    assert "class" not in LEFT
    assert request.session.testsfailed >= 0


def test_asks_dynamically(request):
    assert request.getfixturevalue("outer")


def test_last(request):
    request.addfinalizer(lambda: None)
