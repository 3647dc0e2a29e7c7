"""Rows: fixtures of every scope, and what xunit and unittest set up."""

from __future__ import annotations

from tests.matrix.row import Row, Section

# Opened in pytest's own process: what a test writes through the descriptor is not thrown away with its box.
OUTER_LOG = """
    import os
    import pytest

    LOG = os.open(os.environ["NSBOX_LOG"], os.O_WRONLY | os.O_APPEND)

    def log(*words):
        os.write(LOG, " ".join(map(str, words)).encode() + b"\\n")
"""

SCOPES = (
    OUTER_LOG
    + """
    def made(scope):
        @pytest.fixture(scope=scope, name=f"of_{scope}")
        def fixture():
            log("set up", scope)
            print("set up", scope)
            yield [scope]
            print("torn down", scope)
            log("torn down", scope)
        return fixture

    of_session, of_package, of_module, of_class, of_function = map(
        made, ["session", "package", "module", "class", "function"]
    )
"""
)

FIXTURES = Section(
    "Fixtures",
    [
        Row(
            "session, package, module, class and function scope",
            "1 failed, 5 passed",
            {
                "conftest.py": SCOPES,
                "test_first.py": """
                    def test_one(of_session, of_module, of_function):
                        assert (of_session, of_module, of_function) == (["session"], ["module"], ["function"])

                    class TestGroup:
                        def test_two(self, of_class, of_package):
                            assert of_class == ["class"]

                        def test_three(self, of_class, of_session):
                            assert of_class == ["package"]
                """,
                "pack/__init__.py": "",
                "pack/test_second.py": """
                    def test_four(of_package, of_module): pass
                    def test_five(of_package, of_session): pass
                """,
                "pack/test_third.py": "def test_six(of_package, of_module): pass",
            },
            ["-rA", "--setup-show"],
        ),
        Row(
            "parametrised fixtures of every scope, indirect parameters, ids",
            "2 failed, 16 passed",
            {
                "conftest.py": OUTER_LOG
                + """
    @pytest.fixture(scope="session", params=["s1", "s2"])
    def of_session(request):
        log("set up", request.param)
        yield request.param
        log("torn down", request.param)

    @pytest.fixture(scope="module", params=[1, pytest.param(2, id="two")], ids=str)
    def of_module(request, of_session):
        log("set up", of_session, request.param)
        yield request.param
        log("torn down", of_session, request.param)

    @pytest.fixture
    def indirect(request):
        return request.param * 2
                """,
                "test_parameters.py": """
                    import pytest

                    def test_pairs(of_session, of_module): pass

                    @pytest.mark.parametrize("x", [1, 2])
                    def test_three(of_session, of_module, x):
                        assert (of_session, of_module, x) not in [("s1", 2, 1), ("s2", 1, 2)]

                    @pytest.mark.parametrize("indirect", [3], indirect=True)
                    def test_indirect(indirect):
                        assert indirect == 6

                    @pytest.mark.parametrize("of_session", ["given"], scope="session")
                    def test_given(of_session):
                        assert of_session == "given"

                    @pytest.mark.parametrize(("a", "b"), [(1, 2), (3, 4)], ids=["low", "high"])
                    def test_two_arguments(a, b):
                        assert a < b
                """,
                "test_other.py": "def test_session_only(of_session): pass",
            },
            ["-v"],
        ),
        Row(
            "`request.getfixturevalue` while a test runs, of function scope",
            "1 error, 1 failed, 2 passed",
            {
                "test_dynamic.py": """
                    import pytest

                    @pytest.fixture
                    def inner(tmp_path):
                        yield tmp_path
                        print("torn down")

                    @pytest.fixture
                    def broken():
                        raise ValueError("broken")

                    @pytest.fixture
                    def chooses(request):
                        return request.getfixturevalue(request.param)

                    def test_asks(request):
                        assert request.getfixturevalue("inner").is_dir()

                    def test_asks_for_a_broken_one(request):
                        request.getfixturevalue("broken")

                    @pytest.mark.parametrize("chooses", ["inner", "broken"], indirect=True)
                    def test_chooses(chooses):
                        assert chooses.is_dir()
                """
            },
            ["-rA"],
        ),
        Row(
            "`request.getfixturevalue` while a test runs, of session scope",
            "2 passed",
            {
                "test_dynamic.py": OUTER_LOG
                + """
    @pytest.fixture(scope="session")
    def outer():
        log("set up")
        yield 5
        log("torn down")

    @pytest.mark.parametrize("number", [1, 2])
    def test_asks(request, number):
        assert request.getfixturevalue("outer") == 5
                """
            },
            reason="An outer fixture that is first asked for while a test runs is set up and torn down in that test's"
            " box, once for each such test. Name it in the test's arguments or in `usefixtures` to have it once.",
        ),
        Row(
            "autouse, `usefixtures` (marker and ini), overriding, factories, `addfinalizer`",
            "1 error, 7 passed",
            {
                "pytest.ini": "[pytest]\nusefixtures = everywhere\n",
                "conftest.py": OUTER_LOG
                + """
    @pytest.fixture
    def everywhere():
        log("everywhere")

    @pytest.fixture(autouse=True)
    def always(request):
        log("always", request.node.name)
        request.addfinalizer(lambda: log("first finalizer"))
        request.addfinalizer(lambda: log("second finalizer"))

    @pytest.fixture(scope="module", autouse=True)
    def always_of_module():
        log("module")
        yield
        log("module ends")

    @pytest.fixture
    def value():
        return 1
                """,
                "test_one.py": """
                    import pytest

                    @pytest.fixture
                    def value(value):
                        return value + 1

                    @pytest.fixture
                    def factory():
                        made = []
                        def make(name):
                            made.append(name)
                            return name * 2
                        yield make
                        print("made", made)

                    def test_overrides(value):
                        assert value == 2

                    def test_makes(factory):
                        assert factory("a") + factory("b") == "aabb"

                    @pytest.mark.usefixtures("factory")
                    class TestUses:
                        @pytest.fixture
                        def value(self, value):
                            return value + 1

                        def test_overrides_twice(self, value):
                            assert value == 3

                        def test_names(self, request):
                            assert "factory" in request.fixturenames

                    def test_fails_late(request):
                        def fails():
                            raise RuntimeError("in a finalizer")
                        request.addfinalizer(fails)
                """,
                "test_two.py": """
                    def test_plain(value):
                        assert value == 1

                    def test_request(request):
                        assert request.node.name == request.function.__name__ == "test_request"
                        assert request.module.__name__ == "test_two"
                        assert request.config.rootpath == request.path.parent
                """,
            },
            ["-rA"],
        ),
        Row(
            "fixtures that fail, skip or xfail, in set-up and tear-down, of every scope",
            "1 failed, 4 passed, 2 skipped, 1 xfailed, 7 errors",
            {
                "test_broken.py": """
                    import pytest

                    @pytest.fixture(scope="session")
                    def breaks_in_session():
                        raise RuntimeError("session")

                    @pytest.fixture(scope="module")
                    def breaks_late_in_module():
                        yield
                        raise RuntimeError("module, late")

                    @pytest.fixture(scope="class")
                    def breaks_late_in_class():
                        yield
                        raise RuntimeError("class, late")

                    @pytest.fixture
                    def breaks_late():
                        yield
                        raise RuntimeError("late")

                    @pytest.fixture
                    def breaks_late_too():
                        yield
                        raise RuntimeError("late, too")

                    @pytest.fixture(scope="module")
                    def skips():
                        pytest.skip("in a fixture")

                    @pytest.fixture
                    def xfails():
                        pytest.xfail("in a fixture")

                    def test_session(breaks_in_session): pass
                    def test_session_again(breaks_in_session): pass

                    class TestGroup:
                        def test_one(self, breaks_late_in_class): pass
                        def test_two(self, breaks_late_in_class): assert 0

                    def test_two_late(breaks_late, breaks_late_too): pass
                    def test_skips(skips): pass
                    def test_skips_again(skips): pass
                    def test_xfails(xfails): pass
                    def test_unknown(no_such_fixture): pass

                    @pytest.fixture
                    def yields_twice():
                        yield
                        yield

                    def test_yields_twice(yields_twice): pass
                    def test_module(breaks_late_in_module): pass
                """
            },
            ["-rA"],
        ),
        Row(
            "a test's own tear-down and one of an outer fixture fail, both after the same test",
            "1 passed, 1 error",
            {
                "test_broken.py": """
                    import pytest

                    @pytest.fixture(scope="module")
                    def breaks_late_in_module():
                        yield
                        raise RuntimeError("module, late")

                    @pytest.fixture
                    def breaks_late():
                        yield
                        raise RuntimeError("late")

                    def test_both(breaks_late_in_module, breaks_late): pass
                """
            },
            reason="The two errors come from two processes. Both are shown, the outer fixture's as a section of the"
            " report, where plain pytest shows one exception group.",
        ),
        Row(
            "state on classes, `setup_class`, `setup_method`",
            "1 failed, 3 passed",
            {
                "test_state.py": OUTER_LOG
                + """
    class TestState:
        @classmethod
        def setup_class(cls):
            cls.made = ["of the class"]
            log("setup_class")

        @classmethod
        def teardown_class(cls):
            log("teardown_class", cls.made)

        def setup_method(self, method):
            self.own = method.__name__
            log("setup_method", self.own)

        def teardown_method(self, method):
            log("teardown_method", self.own)

        def test_one(self):
            assert self.made == ["of the class"]
            assert self.own == "test_one"
            self.left = 1

        def test_two(self):
            assert not hasattr(self, "left")
            assert self.made == []

    class TestInherits(TestState):
        pass
                """.replace("assert self.made == []", "assert self.made == [] or type(self) is not TestState")
            },
        ),
        Row(
            "`setup_module`, `setup_function` and their counterparts",
            "1 error, 3 passed",
            {
                "test_module.py": OUTER_LOG
                + """
    def setup_module(module):
        module.VALUE = 5
        log("setup_module")

    def teardown_module(module):
        log("teardown_module", module.VALUE)

    def setup_function(function):
        log("setup", function.__name__)

    def teardown_function(function):
        log("teardown", function.__name__)

    def test_one():
        assert VALUE == 5

    def test_two():
        assert VALUE == 5
                """,
                "test_other.py": """
                    def teardown_module():
                        raise RuntimeError("late")

                    def test_three():
                        pass
                """,
            },
            ["-rA"],
        ),
        Row(
            "unittest: `setUpClass`, `setUpModule`, `setUp`, cleanups, `IsolatedAsyncioTestCase`",
            "2 failed, 9 passed, 3 skipped, 1 xfailed",
            {
                "test_cases.py": OUTER_LOG
                + """
    import unittest

    def setUpModule():
        log("setUpModule")

    def tearDownModule():
        log("tearDownModule")

    class TestOne(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            cls.shared = [1]
            cls.addClassCleanup(log, "class cleanup")
            log("setUpClass")

        @classmethod
        def tearDownClass(cls):
            log("tearDownClass", cls.shared)

        def setUp(self):
            self.own = 2
            self.addCleanup(log, "cleanup of", self.id())

        def tearDown(self):
            log("tearDown", self.own)

        def test_passes(self):
            self.assertEqual(self.shared, [1])

        def test_fails(self):
            self.assertEqual({"a": self.own}, {"a": 3})

        @unittest.skip("not now")
        def test_skipped(self):
            pass

        def test_skips(self):
            self.skipTest("in the test")

        @unittest.expectedFailure
        def test_expected(self):
            assert 0

        @unittest.expectedFailure
        def test_unexpected(self):
            pass

        def test_logs(self):
            import logging
            with self.assertLogs("x", "INFO") as caught:
                logging.getLogger("x").info("said")
            assert caught.output == ["INFO:x:said"]

        def test_warns(self):
            import warnings
            with self.assertWarns(UserWarning):
                warnings.warn("said")

    class TestAsync(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self):
            import asyncio
            await asyncio.sleep(0)
            self.value = 1

        async def test_awaits(self):
            import asyncio
            await asyncio.sleep(0.001)
            assert self.value == 1

    @unittest.skip("a whole class")
    class TestSkipped(unittest.TestCase):
        def test_one(self): pass

    class TestFixtures(unittest.TestCase):
        @pytest.fixture(autouse=True)
        def inject(self, tmp_path, request):
            self.directory = tmp_path

        @pytest.mark.usefixtures("monkeypatch")
        def test_directory(self):
            assert self.directory.is_dir()

    @pytest.fixture(scope="class")
    def on_class(request):
        request.cls.given = 7

    @pytest.mark.usefixtures("on_class")
    class TestGiven(unittest.TestCase):
        def test_given(self):
            assert self.given == 7
        def test_still_given(self):
            assert self.given == 7
                """,
                "test_plain.py": "def test_plain(): pass\ndef test_more(): pass\n",
            },
            ["-rA"],
        ),
        Row(
            "unittest: `setUpClass` that fails, exceptions of `setUp` and `tearDown`",
            "2 failed, 2 errors",
            {
                "test_cases.py": """
                    import unittest

                    class TestClass(unittest.TestCase):
                        @classmethod
                        def setUpClass(cls):
                            raise RuntimeError("class")

                        def test_one(self): pass
                        def test_two(self): pass

                    class TestMethods(unittest.TestCase):
                        def setUp(self):
                            if "one" in self.id():
                                raise RuntimeError("set-up")

                        def tearDown(self):
                            raise RuntimeError("tear-down")

                        def test_one(self): pass
                        def test_two(self): pass
                """
            },
            ["-rA"],
        ),
        Row(
            "`tmp_path`, `tmpdir`, `tmp_path_factory`, `--basetemp`",
            "1 failed, 4 passed",
            {
                "test_tmp.py": """
                    import pytest

                    @pytest.fixture(scope="module")
                    def shared(tmp_path_factory):
                        directory = tmp_path_factory.mktemp("shared")
                        (directory / "file").write_text("1")
                        return directory

                    def test_own(tmp_path, tmpdir):
                        assert str(tmp_path) == str(tmpdir)
                        assert tmp_path.name == "test_own0"
                        (tmp_path / "file").write_text("x")

                    def test_shares(shared, tmp_path_factory):
                        assert shared.parent == tmp_path_factory.getbasetemp()
                        (shared / "file").write_text("2")

                    def test_finds(shared):
                        assert (shared / "file").read_text() == "2"
                        assert (shared.parent / "test_own0" / "file").read_text() == "x"

                    def test_numbers(tmp_path_factory):
                        assert [tmp_path_factory.mktemp("n").name for _ in range(2)] == ["n0", "n1"]

                    def test_fails(tmp_path):
                        assert tmp_path.name == ""
                """
            },
            ["--basetemp=base"],
            produces=["base"],
        ),
        *(
            Row(
                f"`tmp_path_retention_policy = {policy}`",
                "1 failed, 2 passed",
                {
                    "test_tmp.py": """
                        import pytest

                        def test_passes(tmp_path):
                            (tmp_path / "file").write_text("x")

                        def test_fails(tmp_path):
                            (tmp_path / "file").write_text("x")
                            assert 0

                        @pytest.fixture
                        def late(tmp_path):
                            yield
                            assert (tmp_path / "file").exists()

                        def test_late(tmp_path, late):
                            (tmp_path / "file").write_text("x")
                    """
                },
                ["-o", f"tmp_path_retention_policy={policy}"],
                produces=["../tmp"],
            )
            for policy in ("all", "failed", "none")
        ),
    ],
)
