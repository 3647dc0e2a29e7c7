"""unittest, subtests, doctests.

>>> 1 + 1
2
>>> print("doc")
doc
"""

import unittest

import pytest


def documented(value):
    """
    >>> documented(1)
    1
    >>> documented(2)
    3
    """
    return value


def skipped():
    """
    >>> 1 / 0  # doctest: +SKIP
    """


class TestCases(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print("set up", cls.__name__)
        cls.value = 1

    @classmethod
    def tearDownClass(cls):
        print("tear down", cls.__name__)

    def setUp(self):
        self.addCleanup(print, "cleaned up")

    def tearDown(self):
        print("tearDown")

    def test_passes(self):
        assert self.value == 1

    def test_fails(self):
        print("before")
        self.assertEqual([1, 2, 3], [1, 2, 4])

    @unittest.skip("by unittest")
    def test_skipped(self):
        pass

    def test_skips_itself(self):
        self.skipTest("in the test")

    @unittest.expectedFailure
    def test_expected_failure(self):
        self.fail("expected")

    @unittest.expectedFailure
    def test_unexpected_success(self):
        pass

    def test_error(self):
        raise KeyError("error")


class TestBrokenSetUp(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise RuntimeError("class set-up is broken")

    def test_one(self):
        pass

    def test_two(self):
        pass


class TestBrokenTearDown(unittest.TestCase):
    @classmethod
    def tearDownClass(cls):
        raise RuntimeError("class tear-down is broken")

    def test_one(self):
        pass


class TestMethodsBroken(unittest.TestCase):
    def setUp(self):
        if "set_up" in self.id():
            raise RuntimeError("setUp is broken")

    def tearDown(self):
        if "tear_down" in self.id():
            raise RuntimeError("tearDown is broken")

    def test_set_up(self):
        pass

    def test_tear_down(self):
        pass


class TestAsync(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.value = 2

    async def test_awaits(self):
        import asyncio

        await asyncio.sleep(0)
        self.assertEqual(self.value, 1)


@unittest.skip("the whole class")
class TestSkipped(unittest.TestCase):
    def test_one(self):
        pass


class TestWithFixture(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _grab(self, tmp_path, capsys):
        self.tmp = tmp_path
        self.capsys = capsys

    def test_fixture(self):
        print("x")
        assert self.capsys.readouterr().out == "x\n"
        assert self.tmp.is_dir()
