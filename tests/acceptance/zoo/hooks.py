import unittest

import pytest


def test_passes(value):
    assert value == 12


def test_fails(value):
    assert value == 13


def test_skips(value):
    pytest.skip("in the test")


@pytest.mark.skip(reason="by mark")
def test_skipped_by_mark(value):
    pass


@pytest.mark.setup_hook_skips
def test_skipped_before_a_failing_session_fixture(failing_session_fixture):
    pass


def test_with_a_failing_session_fixture(failing_session_fixture, value):
    pass


def test_with_a_failing_session_fixture_again(failing_session_fixture, value):
    pass


@pytest.mark.setup_hook_fails
def test_setup_hook_fails(value):
    pass


@pytest.mark.late_setup_hook_fails
def test_late_setup_hook_fails(value):
    pass


@pytest.mark.call_hook_fails
def test_call_hook_fails(value):
    pass


@pytest.mark.teardown_hook_fails
def test_teardown_hook_fails(value):
    pass


@pytest.mark.xfail
def test_xfails(value):
    assert 0


@pytest.mark.parametrize("number", [1, 2])
class TestClass:
    @pytest.fixture(scope="class")
    def of_class(self, session_value):
        return session_value

    def test_one(self, number, of_class):
        pass

    def test_two(self, number, value):
        assert number == 1


class TestCase(unittest.TestCase):
    def setUp(self):
        self.value = 1

    def test_passes(self):
        pass

    def test_fails(self):
        self.assertEqual(self.value, 2)
