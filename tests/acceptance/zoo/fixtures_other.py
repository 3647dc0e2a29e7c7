"""A second module: what is of session scope goes on, what is of module scope begins anew."""

import pytest
from conftest import log


def test_session_list(session_list, of_package):
    assert session_list == [1, 2, 3]


def test_session_parameter(session_parameter):
    pass


class TestShared:
    @pytest.fixture(scope="class", autouse=True)
    def own(self):
        log("outer own>")
        yield
        log("outer own<")

    def test_one(self):
        pass

    @pytest.mark.xfail
    def test_two(self):
        assert 0
