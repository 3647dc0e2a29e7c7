import unittest

import pytest


def test_subtests(subtests):
    for number in range(4):
        with subtests.test("part", number=number):
            print("in part", number)
            if number == 3:
                pytest.skip("the third")
            assert number != 1


def test_subtests_pass(subtests):
    for number in range(3):
        with subtests.test(number=number):
            pass


def test_subtests_and_failure(subtests, record_property):
    record_property("n", 1)
    with subtests.test(msg="inner"):
        assert 0, "inner"
    assert 0, "outer"


@pytest.mark.xfail
def test_subtests_under_xfail(subtests):
    with subtests.test():
        assert 0


def test_subtests_xfail_inside(subtests):
    with subtests.test("inner"):
        pytest.xfail("inside")


class TestCases(unittest.TestCase):
    def test_subtests(self):
        for number in range(4):
            with self.subTest("parts", number=number):
                if number == 3:
                    self.skipTest("the third")
                assert number % 2 == 0

    def test_subtests_all_pass(self):
        for number in range(2):
            with self.subTest(number=number):
                pass

    def test_subtests_and_the_test_fail(self):
        with self.subTest("inner"):
            assert 0, "inner"
        assert 0, "outer"
