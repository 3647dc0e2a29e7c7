"""Tests that see what earlier tests of their group did, as in one process."""

import logging
import random
import threading
import unittest
import warnings

import pytest

LOG = logging.getLogger("groups")
state = []


def test_first(own):
    own.append(1)
    state.append(1)
    warnings.warn("of the first", stacklevel=1)


class TestClass:
    def test_in_a_class(self, own):
        own.append(2)
        print("printed in a class")
        type(self).seen = True

    @pytest.mark.filterwarnings("ignore")
    def test_with_its_own_filter(self, own):
        warnings.warn("ignored here", stacklevel=1)
        assert own == [1, 2]
        assert self.seen

    def test_filter_is_gone(self):
        warnings.warn("not ignored", stacklevel=1)


class TestOther:
    @classmethod
    def setup_class(cls):
        warnings.warn("of the set-up of a class", stacklevel=1)

    def test_fails(self, own):
        print("before the failure")
        LOG.warning("logged before the failure")
        assert 0

    @pytest.mark.xfail(strict=True)
    def test_fails_as_expected(self, of_class):
        warnings.warn("expected", stacklevel=1)
        assert 0


def test_session_fixture_fails(fails):
    pass


def test_parameters(module_parameter, of_module):
    assert of_module


@pytest.mark.skipif("True")
def test_skipped_before_a_session_fixture_fails(fails):
    pass


def test_dynamic(request):
    assert request.getfixturevalue("of_class") == [1, 2]
    assert state == [1]


def test_captured(capsys, caplog, record_property):
    record_property("key", "value")
    print("hidden")
    assert capsys.readouterr().out == "hidden\n"
    LOG.warning("heard")
    assert "heard" in caplog.text


class Cases(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.seen = []

    @classmethod
    def tearDownClass(cls):
        print("of the class", cls.seen)

    def test_a(self):
        self.seen.append("a")

    def test_b(self):
        self.seen.append("b")
        self.assertEqual(self.seen, ["a", "b"])

    @unittest.skip("no")
    def test_c(self):
        pass

    @unittest.expectedFailure
    def test_d(self):
        assert 0


def test_seeds():
    random.seed(5)
    random.random()


def test_goes_on_with_the_sequence():
    assert random.random() == pytest.approx(0.7417869892607294)


def test_thread_fails():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()


def test_files(tmp_path, tmp_path_factory):
    (tmp_path / "file").write_text("text")
    assert tmp_path.parent == tmp_path_factory.getbasetemp()


def test_last(fails_late):
    pass
