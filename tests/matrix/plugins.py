"""Rows: other people's plugins."""

from __future__ import annotations

from tests.matrix.fixtures import OUTER_LOG
from tests.matrix.options import ALL, SUITE
from tests.matrix.row import Row, Section

# Suites that know how often a test was tried.
ATTEMPTS = (
    OUTER_LOG
    + """
    LOG = os.open(os.environ["NSBOX_LOG"], os.O_RDWR | os.O_APPEND)

    def attempt(name):
        os.write(LOG, f"{name} runs\\n".encode())
        return os.pread(LOG, 10000, 0).decode().count(f"{name} runs")
"""
)

MANY = {
    "test_a.py": """
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_numbers(number):
            print("number", number)
            assert number != 4

        class TestGroup:
            def test_one(self, worker_id, record_property):
                record_property("key", "value")
                assert worker_id.startswith("gw")

            @pytest.mark.xfail
            def test_two(self): assert 0
    """,
    "test_b.py": """
        import warnings
        import pytest

        @pytest.fixture(scope="session")
        def outer(tmp_path_factory, testrun_uid):
            return tmp_path_factory.mktemp("outer")

        def test_three(outer): warnings.warn("a warning")

        @pytest.fixture
        def late():
            yield
            raise RuntimeError("late")

        def test_four(outer, late): pass
    """,
}
MANY_GIVES = "1 failed, 8 passed, 1 xfailed, 1 warning, 1 error"

COVERED = {
    "covered.py": """
        def by_a_test(value):
            if value:
                return "yes"
            return "no"

        def by_a_session_fixture():
            return [x for x in range(3) if x]

        def in_a_thread():
            for number in range(3):
                if number == 5:
                    break
            else:
                return "all"

        async def in_a_loop(value):
            while value:
                value -= 1
            return value

        def fails(value):
            try:
                return 1 / value
            except TypeError:
                return None

        def never():
            return "never"
    """,
    "test_covered.py": """
        import asyncio
        import threading
        import pytest
        import covered

        @pytest.fixture(scope="session")
        def session():
            return covered.by_a_session_fixture()

        @pytest.fixture
        def inner():
            yield covered.by_a_test(1)
            import late

        @pytest.mark.parametrize("value", [0, 1])
        def test_one(session, value):
            assert covered.by_a_test(value) == ["no", "yes"][value]

        def test_two(inner):
            assert inner == "yes"

        def test_thread():
            thread = threading.Thread(target=covered.in_a_thread)
            thread.start()
            thread.join()

        def test_loop():
            assert asyncio.run(covered.in_a_loop(2)) == 0

        def test_fails():
            covered.fails(0)
    """,
    "late.py": "VALUE = 1\nif VALUE:\n    VALUE += 1\n",
    "unused.py": "def unused():\n    return 1\n",
}
COVERED_GIVES = "1 failed, 5 passed"
# An address in a report of coverage's own would differ, and the time of a report does.
COVERAGE_TIMES = r'"timestamp": "[^"]*"|timestamp="\d+"'


def _xdist(feature: str, *args: str) -> Row:
    return Row(feature, MANY_GIVES, MANY, ["-n2", *args], ["xdist"], several_processes=True)


def _cov(feature: str, gives: str, *args: str, **more: object) -> Row:
    plugins = ["pytest_cov", *(["xdist"] if "-n2" in args else [])]
    return Row(
        feature,
        gives,
        COVERED,
        ["--cov=.", "--cov-report=term-missing", "--cov-report=json", *args],
        plugins,
        produces=["coverage.json"],
        ignore=COVERAGE_TIMES,
        several_processes="-n2" in args,
        **more,  # type: ignore[arg-type]
    )


PLUGINS = Section(
    "Plugins",
    [
        _xdist("pytest-xdist: `-n 2` (load)"),
        _xdist("pytest-xdist: `--dist loadscope`", "--dist=loadscope"),
        _xdist("pytest-xdist: `--dist loadfile`", "--dist=loadfile"),
        _xdist("pytest-xdist: `--dist loadgroup`", "--dist=loadgroup"),
        _xdist("pytest-xdist: `--dist worksteal`", "--dist=worksteal"),
        _xdist("pytest-xdist: `--maxprocesses`", "-nauto", "--maxprocesses=1"),
        Row(
            "pytest-xdist: `-x`, `--junitxml`",
            "1 failed, 1 passed",
            {"test_a.py": "def test_one(): pass\ndef test_two(): assert 0\ndef test_three(): pass\n"},
            ["-n1", "-x", "--junitxml=junit.xml"],
            ["xdist"],
            several_processes=True,
        ),
        _cov("pytest-cov: statements", COVERED_GIVES),
        _cov("pytest-cov: branches", COVERED_GIVES, "--cov-branch"),
        _cov("pytest-cov: contexts", COVERED_GIVES, "--cov-branch", "--cov-context=test"),
        _cov(
            "pytest-cov: `--cov-fail-under` that is missed",
            "5 passed, 1 deselected",
            "--cov-fail-under=99",
            "-k",
            "not fails",
        ),
        _cov(
            "pytest-cov: `--cov-fail-under` that is met",
            "5 passed, 1 deselected",
            "--cov-fail-under=50",
            "-k",
            "not fails",
        ),
        Row(
            "pytest-cov: processes that tests start (`patch = subprocess`, `concurrency = multiprocessing`)",
            "2 passed",
            {
                ".coveragerc": "[run]\nbranch = true\npatch = subprocess\nconcurrency = multiprocessing, thread\n"
                "omit = recorder.py\n",
                "started.py": "import sys\n\ndef double(number):\n    return number * 2\n\n"
                "if len(sys.argv) == 2:\n    print(sys.argv[1])\nelse:\n    print('imported')\n",
                "test_starts.py": """
                    import multiprocessing
                    import subprocess
                    import sys
                    import started

                    def test_subprocess():
                        subprocess.run([sys.executable, "started.py", "5"], check=True)

                    def test_pool():
                        with multiprocessing.get_context("spawn").Pool(1) as pool:
                            assert pool.map(started.double, [1]) == [2]
                            pool.close()
                            pool.join()
                """,
            },
            ["--cov=.", "--cov-report=term-missing", "--cov-report=json"],
            ["pytest_cov"],
            produces=["coverage.json"],
            ignore=COVERAGE_TIMES,
        ),
        _cov("pytest-cov with xdist: statements", COVERED_GIVES, "-n2"),
        _cov("pytest-cov with xdist: branches, contexts", COVERED_GIVES, "-n2", "--cov-branch", "--cov-context=test"),
        Row(
            "pytest-timeout: method signal",
            "2 failed, 1 passed",
            {
                "test_slow.py": """
                    import time
                    import pytest

                    @pytest.mark.timeout(0.5)
                    def test_slow():
                        print("before")
                        time.sleep(20)

                    @pytest.fixture
                    def slow():
                        time.sleep(20)

                    @pytest.mark.timeout(30)
                    def test_quick(): pass

                    @pytest.mark.timeout(0.5, func_only=True)
                    def test_only_the_function(): time.sleep(20)
                """
            },
            ["--timeout=20"],
            ["timeout"],
        ),
        Row(
            "pytest-timeout: `--session-timeout`",
            "1 passed",
            {"test_slow.py": "import time\n\ndef test_one(): time.sleep(1.2)\n\ndef test_two(): pass\n"},
            ["--session-timeout=1"],
            ["timeout"],
        ),
        Row(
            "pytest-timeout: method thread",
            "",
            {"test_slow.py": "import time\ndef test_slow():\n    time.sleep(20)\ndef test_after(): pass\n"},
            ["--timeout=0.5", "--timeout-method=thread"],
            ["timeout"],
            reason="Without a box, this method ends the whole of pytest. In a box it ends the test, which is reported"
            " with the stacks of its threads, and the run goes on.",
            differs=("outcomes", "counts", "report"),
        ),
        Row(
            "pytest-rerunfailures",
            "1 failed, 2 passed, 4 rerun",
            {
                "test_flaky.py": ATTEMPTS
                + """
    @pytest.fixture
    def inner():
        yield
        log("torn down")

    @pytest.mark.flaky(reruns=3)
    def test_third_time(inner):
        assert attempt("third") == 3

    def test_never(inner):
        print("attempt", attempt("never"))
        assert 0

    def test_last(): pass
                """
            },
            ["--reruns=2", "-rAR"],
            ["rerunfailures"],
        ),
        Row(
            "flaky",
            "1 failed, 2 passed",
            {
                "test_flaky.py": ATTEMPTS
                + """
    from flaky import flaky

    @flaky(max_runs=4, min_passes=1)
    def test_third_time():
        assert attempt("third") == 3

    @flaky
    def test_never():
        attempt("never")
        assert 0

    def test_last(): pass
                """
            },
            ["-rA"],
            ["flaky"],
            ignore=r"\[<TracebackEntry .*",  # it lists pytest's own frames as well
        ),
        Row(
            "pytest-repeat",
            "1 failed, 5 passed",
            {"test_it.py": "def test_one(): pass\ndef test_two(request): assert '2-3' not in request.node.name\n"},
            ["--count=3", "-v"],
            ["repeat"],
        ),
        Row(
            "pytest-run-parallel",
            "2 passed, 1 error",
            {
                "test_it.py": """
                    import threading
                    import pytest

                    seen = set()

                    def test_threads(): seen.add(threading.get_ident())
                    def test_fails(): assert 0

                    @pytest.mark.thread_unsafe
                    def test_alone(tmp_path): assert tmp_path.is_dir()
                """
            },
            ["--parallel-threads=4", "-v"],
            ["run-parallel"],
        ),
        Row(
            "pytest-asyncio",
            "1 failed, 6 passed",
            {
                "pytest.ini": "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n",
                "test_async.py": """
                    import asyncio
                    import pytest
                    import pytest_asyncio

                    @pytest.fixture
                    async def value():
                        await asyncio.sleep(0)
                        yield 5
                        await asyncio.sleep(0)

                    @pytest_asyncio.fixture(scope="module", loop_scope="module")
                    async def of_module():
                        yield asyncio.Queue()

                    async def test_awaits(value): assert value == 5
                    async def test_fails(value): assert value == 6

                    @pytest.mark.asyncio(loop_scope="module")
                    @pytest.mark.parametrize("number", [1, 2])
                    async def test_module_loop(of_module, number):
                        await of_module.put(1)
                        assert of_module.qsize() == 1 or number == 2

                    class TestGroup:
                        async def test_method(self): await asyncio.sleep(0)

                    async def test_server():
                        async def serve(reader, writer):
                            writer.write((await reader.readline()).upper())
                            writer.close()
                        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
                            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                            writer.write(b"hello\\n")
                            assert await reader.readline() == b"HELLO\\n"
                            writer.close()

                    def test_plain(): assert asyncio.run(asyncio.sleep(0, 3)) == 3
                """,
            },
            ["-v"],
            ["asyncio"],
        ),
        Row(
            "anyio (asyncio and trio)",
            "2 failed, 6 passed",
            {
                "test_async.py": """
                    import anyio
                    import pytest

                    pytestmark = pytest.mark.anyio

                    @pytest.fixture(params=["asyncio", "trio"])
                    def anyio_backend(request):
                        return request.param

                    @pytest.fixture
                    async def value():
                        async with anyio.create_task_group():
                            yield 5

                    async def test_sleeps(): await anyio.sleep(0)
                    async def test_value(value): assert value == 5
                    async def test_fails(value): assert value == 6

                    async def test_stream():
                        send, receive = anyio.create_memory_object_stream(1)
                        async with send, receive:
                            await send.send(1)
                            assert await receive.receive() == 1
                """
            },
            ["-v"],
            ["anyio"],
        ),
        Row(
            "pytest-trio",
            "1 failed, 2 passed",
            {
                "pytest.ini": "[pytest]\ntrio_mode = true\n",
                "test_trio.py": """
                    import trio

                    async def test_sleeps(autojump_clock):
                        await trio.sleep(1000)

                    async def test_nursery(nursery):
                        nursery.start_soon(trio.sleep, 0)

                    async def test_fails():
                        await trio.sleep(0)
                        assert 0
                """,
            },
            ["-v"],
            ["trio"],
        ),
        Row(
            "pytest-mock",
            "1 failed, 2 passed",
            {
                "test_mock.py": """
                    import os
                    import pytest

                    @pytest.fixture(scope="module")
                    def patched(module_mocker):
                        return module_mocker.patch("os.getlogin", return_value="me")

                    def test_patches(mocker, patched):
                        mocker.patch("os.getpid", return_value=5)
                        stub = mocker.stub()
                        stub(1)
                        stub.assert_called_once_with(2)

                    def test_undone(): assert os.getpid() != 5
                    def test_of_the_module(patched): assert os.getlogin() == "me"
                """
            },
            [],
            ["pytest_mock"],
        ),
        Row(
            "pytest-httpserver",
            "1 failed, 2 passed",
            {
                "test_http.py": """
                    import json
                    import urllib.request

                    def get(server, path):
                        with urllib.request.urlopen(server.url_for(path)) as answer:
                            return json.load(answer)

                    def test_one(httpserver):
                        httpserver.expect_request("/one").respond_with_json({"number": 1})
                        assert get(httpserver, "/one") == {"number": 1}

                    def test_two(httpserver):
                        httpserver.expect_request("/two").respond_with_json({"number": 2})
                        assert get(httpserver, "/two") == {"number": 2}

                    def test_wrong(httpserver):
                        httpserver.expect_request("/three").respond_with_json({"number": 3})
                        assert get(httpserver, "/three") == {"number": 4}
                """
            },
            ["--show-capture=no"],
            ["pytest_httpserver"],
            ignore=r"localhost:\d+|port=\d+|\[[^]]* \d\d:\d\d:\d\d\]",
        ),
        Row(
            "pytest-randomly",
            "1 failed, 8 passed",
            {
                "test_order.py": """
                    import random
                    import pytest

                    @pytest.mark.parametrize("number", range(8))
                    def test_numbers(number, record_property):
                        record_property("random", random.random())

                    def test_fails(): assert random.random() > 2
                """
            },
            ["-p", "randomly", "-p", "randomly", "-v", "-p", "no:cacheprovider"],
            ["randomly"],
            env={"PYTEST_ADDOPTS": "-p randomly --randomly-seed=5"},
        ),
        Row(
            "pytest-benchmark",
            "1 failed, 2 passed",
            {
                "test_speed.py": """
                    def test_speed(benchmark):
                        assert benchmark(sum, [1, 2]) == 3

                    def test_fails(benchmark):
                        assert benchmark(sum, [1, 2]) == 4

                    def test_plain(): pass
                """
            },
            ["--benchmark-max-time=0.01", "--benchmark-min-rounds=2", "--show-capture=no"],
            ["benchmark"],
            ignore=r"^(Name \(time in|test_speed |test_fails |-{40,}).*",
            reason="What the plugin measures stays in the test's process, as in a worker of pytest-xdist, so its table"
            " is empty (the run says so). Mark benchmarks `sandbox(False)`.",
        ),
        Row(
            "pytest-benchmark: `--benchmark-disable`, `--benchmark-json`",
            "2 passed",
            {"test_speed.py": "def test_speed(benchmark): assert benchmark(sum, [1]) == 1\ndef test_plain(): pass\n"},
            ["--benchmark-disable", "--benchmark-json=bench.json"],
            ["benchmark"],
        ),
        Row(
            "pytest-django: database, transactions, client, `live_server`",
            "1 failed, 6 passed",
            {
                "pytest.ini": "[pytest]\nDJANGO_SETTINGS_MODULE = settings\npythonpath = .\n",
                "settings.py": """
                    SECRET_KEY = "x"
                    INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
                    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
                    ROOT_URLCONF = "urls"
                    USE_TZ = True
                    ALLOWED_HOSTS = ["*"]
                    STATIC_URL = "/static/"
                """,
                "urls.py": """
                    from django.http import HttpResponse
                    from django.urls import path

                    urlpatterns = [path("hello", lambda request: HttpResponse("hello"))]
                """,
                "test_django.py": """
                    import urllib.request
                    import pytest
                    from django.contrib.auth.models import User
                    from django.test import TestCase

                    @pytest.mark.django_db
                    def test_database():
                        User.objects.create_user("me")
                        assert User.objects.count() == 1

                    @pytest.mark.django_db
                    def test_rolled_back(): assert User.objects.count() == 0

                    @pytest.mark.django_db(transaction=True)
                    def test_transaction():
                        User.objects.create_user("me")
                        assert User.objects.count() == 1

                    def test_no_database(): User.objects.count()
                    def test_client(client): assert client.get("/hello").content == b"hello"

                    @pytest.mark.django_db
                    def test_settings(settings, admin_user):
                        settings.DEBUG = True
                        assert admin_user.is_superuser

                    class TestCases(TestCase):
                        @classmethod
                        def setUpTestData(cls):
                            cls.user = User.objects.create_user("shared")

                        def test_shared(self): assert User.objects.get().username == "shared"
                """,
            },
            [],
            ["django"],
        ),
        Row(
            "pytest-flask",
            "1 failed, 2 passed",
            {
                "conftest.py": """
                    import flask
                    import pytest

                    @pytest.fixture
                    def app():
                        app = flask.Flask("app")
                        app.route("/hello")(lambda: {"hello": "world"})
                        return app
                """,
                "test_flask.py": """
                    import flask

                    def test_client(client): assert client.get("/hello").json == {"hello": "world"}
                    def test_wrong(client): assert client.get("/other").status_code == 200
                    def test_context(client): assert flask.url_for("static", filename="x") == "/static/x"
                """,
            },
            [],
            ["flask"],
        ),
        Row(
            "hypothesis",
            "1 failed, 3 passed",
            {
                "test_properties.py": """
                    from hypothesis import HealthCheck, given, note, settings, seed, strategies as st
                    from hypothesis.stateful import RuleBasedStateMachine, rule
                    import pytest

                    @seed(1)
                    @settings(database=None)
                    @given(st.integers())
                    def test_passes(n): assert n == n

                    @seed(1)
                    @settings(database=None)
                    @given(st.lists(st.integers()))
                    def test_fails(numbers):
                        note("noted")
                        assert sum(numbers) < 100

                    @pytest.fixture
                    def value(): return 7

                    @settings(database=None, suppress_health_check=list(HealthCheck))
                    @given(n=st.integers(0, 5))
                    def test_fixture(value, n): assert value != n

                    class Machine(RuleBasedStateMachine):
                        @rule(n=st.integers())
                        def add(self, n): assert n == n

                    TestMachine = Machine.TestCase
                    TestMachine.settings = settings(database=None, max_examples=5)
                """
            },
            ["-p", "no:cacheprovider"],
            ["hypothesispytest"],
            ignore=r"\d+\.\d+ ?(m?s|seconds)\b|[<~] ?\d[\d-]* ?ms",
        ),
        Row(
            "pytest-html",
            ALL.replace("1 warning", "2 warnings"),
            SUITE,
            ["--html=report.html", "--self-contained-html"],
            ["html", "metadata"],
        ),
        Row("pytest-sugar", "", SUITE, ["--force-sugar"], ["sugar"], several_processes=True),
        Row(
            "pytest-json-report",
            ALL,
            SUITE,
            ["--json-report", "--json-report-file=report.json", "--json-report-indent=1"],
            ["pytest_jsonreport", "metadata"],
            produces=["report.json"],
            ignore=r'"(created|duration|start|stop)": [^,]*,?|^ *"[^"]*": [0-9.e-]+,?$',
            reason="A plugin that reads a report when it is made does so in the test's box. What outer fixtures print"
            " when they are torn down is added to the report later, in pytest's process.",
        ),
        Row(
            "pytest-socket",
            "2 failed, 2 passed, 3 warnings",
            {
                "test_sockets.py": """
                    import socket
                    import pytest

                    def test_blocked(): socket.socket(socket.AF_INET)

                    @pytest.mark.enable_socket
                    def test_enabled(): socket.socket().close()

                    @pytest.mark.allow_hosts(["127.0.0.1"])
                    def test_hosts():
                        with pytest.raises(ConnectionRefusedError):
                            socket.create_connection(("127.0.0.1", 1))

                    @pytest.mark.allow_hosts(["127.0.0.2"])
                    def test_other_hosts(): socket.create_connection(("127.0.0.1", 1))
                """
            },
            ["--disable-socket", "--show-capture=no"],
            ["socket"],
        ),
        Row(
            "freezegun, pytest-freezer",
            "1 failed, 3 passed",
            {
                "test_time.py": """
                    import datetime
                    import time
                    import pytest
                    from freezegun import freeze_time

                    @freeze_time("2012-01-14")
                    def test_frozen(): assert datetime.date.today() == datetime.date(2012, 1, 14)

                    @pytest.mark.freeze_time("2017-05-21")
                    def test_marked(): assert datetime.date.today() == datetime.date(2017, 5, 21)

                    def test_moves(freezer):
                        now = time.time()
                        freezer.tick(5)
                        assert time.time() - now == 5

                    @freeze_time("2012-01-14")
                    def test_fails(): assert time.time() == 0
                """
            },
            [],
            ["freezer"],
        ),
        Row(
            "time-machine",
            "1 failed, 2 passed",
            {
                "test_time.py": """
                    import datetime
                    import time
                    import time_machine

                    @time_machine.travel("2012-01-14", tick=False)
                    def test_travels(): assert datetime.date.today() == datetime.date(2012, 1, 14)

                    def test_fixture(time_machine):
                        time_machine.move_to(datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), tick=False)
                        assert time.time() == 1577836800

                    @time_machine.travel(0, tick=False)
                    def test_fails(): assert time.time() == 1
                """
            },
            [],
            ["time_machine"],
        ),
        Row(
            "pyfakefs",
            "1 failed, 3 passed",
            {
                "test_files.py": """
                    import os
                    import pathlib

                    def test_fake(fs):
                        fs.create_file("/data/file", contents="x")
                        assert pathlib.Path("/data/file").read_text() == "x"
                        os.makedirs("/etc")
                        assert os.listdir("/etc") == []

                    def test_real(): assert not os.path.exists("/data/file")

                    def test_fails(fs):
                        fs.create_file("/x")
                        assert sorted(os.listdir("/")) == []

                    def test_many(fs):
                        for number in range(50):
                            fs.create_file(f"/many/{number}")
                        assert len(os.listdir("/many")) == 50
                """
            },
            [],
            ["fakefs"],
        ),
        Row(
            "pytest-bdd",
            "1 failed, 2 passed",
            {
                "sums.feature": """\
Feature: Sums
    Scenario: Adding
        Given the number 1
        When 2 is added
        Then the sum is 3

    Scenario Outline: Adding more
        Given the number <start>
        When 5 is added
        Then the sum is <sum>

        Examples:
        | start | sum |
        | 1     | 6   |
        | 2     | 8   |
""",
                "test_sums.py": """
                    from pytest_bdd import given, parsers, scenarios, then, when

                    scenarios("sums.feature")

                    @given(parsers.parse("the number {number:d}"), target_fixture="numbers")
                    def numbers(number): return [number]

                    @when(parsers.parse("{number:d} is added"))
                    def add(numbers, number): numbers.append(number)

                    @then(parsers.parse("the sum is {number:d}"))
                    def check(numbers, number): assert sum(numbers) == number
                """,
            },
            ["-v"],
            ["pytest-bdd"],
        ),
        Row(
            "pytest-order",
            "1 failed, 2 passed",
            {
                "test_order.py": OUTER_LOG
                + """
    @pytest.mark.order(3)
    def test_three(): log("three")

    @pytest.mark.order("first")
    def test_one(): log("one")

    @pytest.mark.order(after="test_one", before="test_three")
    def test_two():
        log("two")
        assert 0
                """
            },
            ["-v"],
            ["pytest_order"],
        ),
    ],
)
