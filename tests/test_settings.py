"""Options, ini and markers through a real collection, without a box: a plugin prints what settings made of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tests.patience  # noqa: F401 - a setting for all of hypothesis
from pytest_nsbox import settings
from pytest_nsbox.options import Settings, read_plain, read_toml, read_value
from pytest_nsbox.policy.keys import KEYS
from pytest_nsbox.policy.spec import Layer
from pytest_nsbox.settings import host_facts

# argparse of Python 3.13.0 warns of its own accord when pytest 9 parses; later patch releases do not.
pytestmark = pytest.mark.filterwarnings("ignore:Do not expect file_or_dir:UserWarning")

PROBE = """
import json
import pytest
from pytest_nsbox import settings
from pytest_nsbox.policy.spec import HostFacts

def pytest_addoption(parser):
    settings.add_options(parser)

def pytest_configure(config):
    settings.add_marker(config)
    config.probe = settings.read(config)

def pytest_generate_tests(metafunc):
    settings.generate(metafunc)

@pytest.fixture
def sandbox():
    pass

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    resolved = settings.resolve(items, config.probe, HostFacts((0, 1)))
    if resolved.problems:
        raise pytest.UsageError(*resolved.problems)
    for item, spec in resolved.specs.items():
        assert item.stash.get(settings.SPEC, None) is spec
    print("SPECS", json.dumps({item.name: spec and spec.shown() for item, spec in resolved.specs.items()}))
    shown = {name: getattr(config.probe, name) for name in type(config.probe).__record_fields__ if name != "layers"}
    print("SETTINGS", json.dumps(shown))
"""

PYTEST_CHECKS_TYPES = pytest.version_tuple >= (9, 2)


class Probe:
    """A test directory whose runs tell specs and settings instead of running boxes."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        pytester.makepyfile(nsbox_probe=PROBE)
        pytester.syspathinsert()

    def run(self, *arguments: str) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess("-p", "nsbox_probe", "-s", *arguments)

    def specs(self, *arguments: str) -> dict[str, object]:
        result = self.run("--collect-only", *arguments)
        assert result.ret == 0, result.outlines + result.errlines
        return self.told(result, "SPECS")

    def settings(self, *arguments: str) -> dict[str, object]:
        return self.told(self.run("--collect-only", *arguments), "SETTINGS")

    def problems(self, *arguments: str) -> list[str]:
        result = self.run(*arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        return [line.removeprefix("ERROR: ") for line in result.errlines if line]

    @staticmethod
    def told(result: pytest.RunResult, word: str) -> dict[str, object]:
        (line,) = [line for line in result.outlines if line.startswith(f"{word} ")]
        found: dict[str, object] = json.loads(line.removeprefix(f"{word} "))
        return found


@pytest.fixture
def probe(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Probe:
    monkeypatch.delenv("PYTEST_NSBOX_CGROUP_PARENT", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # the real plugin would add the same options
    return Probe(pytester)


def test_only_marked_tests_and_those_that_request_the_fixture_get_a_box(probe):
    probe.pytester.makepyfile(
        """
        import pytest
        def test_plain(): pass
        @pytest.mark.sandbox
        def test_bare(): pass
        @pytest.mark.sandbox()
        def test_called(): pass
        @pytest.mark.sandbox(mem="64M")
        def test_marked(): pass
        def test_requests(sandbox): pass
        @pytest.fixture
        def through(sandbox): pass
        def test_requests_through(through): pass
        """
    )
    assert probe.specs() == {
        "test_plain": None,
        "test_bare": {},
        "test_called": {},
        "test_marked": {"mem": "64M", "swap": "0"},
        "test_requests": {},
        "test_requests_through": {},
    }


OPTED_OUT = """
    import pytest
    def test_plain(): pass
    @pytest.mark.sandbox(False)
    def test_out(): pass
    @pytest.mark.sandbox(False)
    class TestOut:
        def test_in_class(self): pass
        @pytest.mark.sandbox(pids=3)
        def test_back_in(self): pass
    @pytest.mark.sandbox(pids=4)
    class TestIn:
        @pytest.mark.sandbox(False)
        def test_out_again(self): pass
    """


def test_all_puts_every_test_in_a_box_but_those_whose_closest_marker_opts_out(probe):
    probe.pytester.makepyfile(OPTED_OUT)
    expected = {
        "test_plain": {},
        "test_out": None,
        "test_in_class": None,
        "test_back_in": {"pids": 3},
        "test_out_again": None,
    }
    assert probe.specs("--sandbox-all") == expected
    probe.pytester.makeini("[pytest]\nsandbox_all = true")
    assert probe.specs() == expected


def test_off_gives_no_test_a_box_and_still_checks_the_markers(probe):
    probe.pytester.makepyfile(OPTED_OUT)
    assert set(probe.specs("--sandbox-off", "--sandbox-all").values()) == {None}
    probe.pytester.makepyfile("import pytest\n@pytest.mark.sandbox(memmory=1, cpu=64)\ndef test_x(): pass")
    (problem,) = probe.problems("--sandbox-off")  # cpu=64 does not fit the host, but no box is made
    assert "unknown key 'memmory'" in problem


def test_a_test_that_requests_the_fixture_and_opts_out_is_a_contradiction(probe):
    probe.pytester.makepyfile(test_a="import pytest\n@pytest.mark.sandbox(False)\ndef test_x(sandbox): pass")
    assert probe.problems() == [
        "test_a.py::test_x: the test requests the fixture 'sandbox', but its marker sandbox(False) denies it a box"
    ]


def test_markers_of_function_class_and_module_merge_and_the_closest_wins(probe):
    probe.pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.sandbox(mem="1M", pids=1, hostname="module")
        @pytest.mark.sandbox(pids=2, hostname="class")
        class TestA:
            @pytest.mark.sandbox(hostname="function")
            def test_x(self): pass
        @pytest.mark.sandbox(pids=2)
        class Base:
            def test_y(self): pass
        @pytest.mark.sandbox(pids=3)
        class TestDerived(Base): pass
        @pytest.mark.sandbox(pids=4)
        @pytest.mark.sandbox(pids=5)
        def test_stacked(): pass
        @pytest.mark.sandbox(pids=6)
        @pytest.mark.parametrize("a", [pytest.param(1, marks=pytest.mark.sandbox(pids=7)), 2])
        def test_parameter(a): pass
        """
    )
    assert probe.specs() == {
        "test_x": {"mem": "1M", "swap": "0", "pids": 2, "hostname": "function"},
        "test_y": {"mem": "1M", "swap": "0", "pids": 3, "hostname": "module"},
        "test_stacked": {"mem": "1M", "swap": "0", "pids": 5, "hostname": "module"},
        "test_parameter[1]": {"mem": "1M", "swap": "0", "pids": 7, "hostname": "module"},
        "test_parameter[2]": {"mem": "1M", "swap": "0", "pids": 6, "hostname": "module"},
    }


def test_the_ini_and_then_the_command_line_fill_what_markers_leave_unset(probe):
    probe.pytester.makepyfile("import pytest\n@pytest.mark.sandbox(pids=1)\ndef test_x(): pass")
    probe.pytester.makeini("[pytest]\nsandbox_defaults =\n    pids=2\n    mem = 2M\n")
    assert probe.specs("--sandbox-set=pids=3", "--sandbox-set", "mem=3M", "--sandbox-set", "cpu=20%") == {
        "test_x": {"cpu": "20%", "mem": "2M", "swap": "0", "pids": 1}
    }


def test_lists_and_tables_repeat_on_the_command_line_and_other_keys_take_the_last(probe):
    probe.pytester.makepyfile("def test_x(): pass")
    given = ["volumes=/a:/b", 'volumes=["/c:/d:ro"]', "pids=1", "pids=2", 'env={A="1"}', "env={B=2}", "artifacts=*.log"]
    options = [f"--sandbox-set={each}" for each in given]
    assert probe.specs("--sandbox-all", *options) == {
        "test_x": {
            "volumes": ["/a:/b", "/c:/d:ro"],
            "pids": 2,
            "env": {"A": "1", "B": "2"},
            "artifacts": ["*.log"],
        }
    }


def test_relative_volumes_are_below_the_root_directory(probe):
    probe.pytester.makepyfile("import pytest\n@pytest.mark.sandbox(volumes=['./da ta:/x'])\ndef test_x(): pass")
    assert probe.specs()["test_x"] == {"volumes": [f"{probe.pytester.path}/da ta:/x"]}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("mem", "256M", "256M"),
        ("mem", "1024", 1024),
        ("mem", '"256M"', "256M"),
        ("mem", '["64M", "128M"]', ["64M", "128M"]),
        ("cpu", "0.2", 0.2),
        ("cpu", "20%", "20%"),
        ("net", "false", False),
        ("net", "False", "False"),
        ("readonly", "true", True),
        ("cpuset", "0-1,3", "0-1,3"),
        ("cpuset", "1", "1"),
        ("cpuset", "[0, 1]", [0, 1]),
        ("hostname", "2024", "2024"),
        ("hostname", "2024-01-01", "2024-01-01"),
        ("hostname", "true", "true"),
        ("hostname", "inf", "inf"),
        ("user", "1000", "1000"),
        ("user", "12:30:00", "12:30:00"),
        ("env", '{A = "1", B = 2}', {"A": "1", "B": 2}),
        ("ulimits", "{nofile=256}", {"nofile": 256}),
        ("timeout", "07:00:00", "07:00:00"),
        ("workdir", "/a b", "/a b"),
        ("workdir", "1\nx = 2", "1\nx = 2"),
        ("workdir", "", ""),
    ],
)
def test_a_value_is_toml_if_it_parses_as_toml_and_else_the_text(key, text, value):
    assert read_value(key, text) == value
    assert type(read_value(key, text)) is type(value)


@given(st.text("0123456789.:+-_%#\"'[]{}=, \naefiklmnorstuxMGT", max_size=12))
@example("true # yes")
@example("12K = 1")
@example("1e3")
@example("0x1F")
@example("1979-05-27T07:32:00")
def test_what_is_read_without_tomls_parser_is_what_that_reads(text):
    value = read_plain(text.strip())
    assert value is None or (type(value), value) == (type(read_toml(text.strip())), read_toml(text.strip()))


def test_every_wrong_option_and_ini_value_is_told_at_once(probe):
    probe.pytester.makepyfile("def test_x(): pass")
    # pytest 9.2 refuses a value of a wrong type by itself, before any plugin and one at a time.
    typed = "" if PYTEST_CHECKS_TYPES else "sandbox_all = perhaps\nsandbox_pool = many\n"
    probe.pytester.makeini(
        f"[pytest]\n{typed}sandbox_unavailable = bar\nsandbox_budget_mem=0\nsandbox_defaults =\n  nothing\n  cpu=x"
    )
    found = probe.problems(
        "--sandbox-report=some",
        "--sandbox-cgroup-parent=../up",
        "--sandbox-set=foo",
        "--sandbox-set=memmory=1",
        "--sandbox-set=mem=lots",
        "--sandbox-set=caps=net",
    )
    text = "\n".join(found)
    known = ", ".join(KEYS)
    for expected in (
        *(
            []
            if PYTEST_CHECKS_TYPES
            else ["ini sandbox_all: invalid truth value 'perhaps'", "ini sandbox_pool", "'many'"]
        ),
        "ini sandbox_budget_mem='0': a size of zero (accepted: bytes, or digits with ",
        "ini sandbox_unavailable='bar': not a choice (accepted: fail, skip, run)",
        "--sandbox-report='some': not a number of rows (accepted: a number of rows, all or none)",
        "--sandbox-cgroup-parent='../up': not a cgroup (accepted: a path below each hierarchy's mount, such as ",
        "ini sandbox_defaults 'nothing': not a default (accepted: KEY=VALUE)",
        "ini sandbox_defaults 'cpu=x': cpu='x': not a share of CPUs (accepted: ",
        "--sandbox-set 'foo': not a default (accepted: KEY=VALUE)",
        f"--sandbox-set 'memmory=1': unknown key 'memmory' (did you mean 'mem'? known: {known})",
        "--sandbox-set 'mem=lots': mem='lots': not a size (accepted: ",
        "--sandbox-set 'caps=net': caps='net': 'net' is no capability (accepted: a list of capabilities such as ",
    ):
        assert expected in text
    assert len(found) == (10 if PYTEST_CHECKS_TYPES else 12)


@pytest.mark.parametrize("option", ["--sandbox-unavailable=foo", "--sandbox-set=foo", "--sandbox-set=net=False"])
def test_one_wrong_option_is_a_usage_error(probe, option):
    assert len(probe.problems(option)) == 1


def test_all_marker_problems_are_told_at_once_with_file_and_test(probe):
    probe.pytester.makepyfile(
        test_a="""
        import pytest
        @pytest.mark.sandbox(memmory=1, cpu=3)
        def test_x(): pass
        @pytest.mark.sandbox(mem="lots")
        @pytest.mark.parametrize("a", [1, 2, 3])
        def test_y(a): pass
        @pytest.mark.sandbox(swap="1M")
        class TestZ:
            def test_z(self): pass
        def test_fine(): pass
        """,
        test_b="""
        import pytest
        pytestmark = pytest.mark.sandbox("256M", cpu=1)
        def test_x(): pass
        def test_y(): pass
        @pytest.mark.sandbox(True)
        def test_z(): pass
        """,
    )
    known = ", ".join(KEYS)
    size = "(accepted: bytes, or digits with K, M, G or T (powers of 1024) such as '256M')"
    form = "is not understood (accepted: keyword arguments such as mem='256M', or False alone)"
    swap = "swap is counted on top of mem, which is not set (accepted: swap together with mem)"
    assert probe.problems() == [
        f"test_a.py::test_x: sandbox marker: unknown key 'memmory' (did you mean 'mem'? known: {known})",
        "test_a.py::test_x: sandbox marker: cpu=3: more CPUs than the host has (accepted: up to 2, or '200%')",
        f"test_a.py::test_y[1] (and 2 more tests): sandbox marker: mem='lots': not a size {size}",
        f"test_a.py::TestZ::test_z: sandbox marker of TestZ: swap='1M': {swap}",
        f"test_b.py::test_x (and 2 more tests): sandbox marker of test_b.py: sandbox('256M', cpu=1) {form}",
        f"test_b.py::test_z: sandbox marker: sandbox(True) {form}",
    ]


def test_a_contradiction_between_a_marker_and_a_default_is_told(probe):
    probe.pytester.makepyfile("import pytest\n@pytest.mark.sandbox(mem='1M', disk='2M')\ndef test_x(): pass")
    (problem,) = probe.problems()
    assert "disk='2M': the scratch layer lies in memory, which mem='1M' limits (accepted: a size below mem)" in problem
    probe.pytester.makepyfile("import pytest\n@pytest.mark.sandbox(mem=None)\ndef test_x(): pass")
    (problem,) = probe.problems("--sandbox-set=swap=1M", "--sandbox-set=mem=1M")
    assert "--sandbox-set: swap='1M': swap is counted on top of mem, which is not set" in problem


LISTS = """
    import pytest
    @pytest.mark.sandbox(mem=["64M", "128M"], cpu=["20%", 2], pids=3)
    def test_both(): pass
    class TestA:
        pytestmark = pytest.mark.sandbox(mem=["1M", "2M"])
        @pytest.mark.parametrize("a", ["x"])
        def test_with_parameters(self, a, tmp_path): assert a == "x"
        @pytest.mark.sandbox(mem="3M")
        def test_overridden(self): pass
        @pytest.mark.sandbox(False)
        def test_out(self): pass
    def test_plain(): pass
    """


def test_a_list_of_memory_limits_or_cpus_makes_one_test_of_each(probe):
    probe.pytester.makepyfile(LISTS)
    found = probe.specs()
    assert found == {
        "test_both[mem=64M-cpu=20%]": {"mem": "64M", "swap": "0", "cpu": "20%", "pids": 3},
        "test_both[mem=64M-cpu=2]": {"mem": "64M", "swap": "0", "cpu": "200%", "pids": 3},
        "test_both[mem=128M-cpu=20%]": {"mem": "128M", "swap": "0", "cpu": "20%", "pids": 3},
        "test_both[mem=128M-cpu=2]": {"mem": "128M", "swap": "0", "cpu": "200%", "pids": 3},
        "test_with_parameters[mem=1M-x]": {"mem": "1M", "swap": "0"},
        "test_with_parameters[mem=2M-x]": {"mem": "2M", "swap": "0"},
        "test_overridden": {"mem": "3M", "swap": "0"},
        "test_out": None,
        "test_plain": None,
    }
    assert list(probe.specs("--sandbox-off")) == list(found)


def test_tests_made_from_a_list_run_as_ordinary_tests(probe):
    probe.pytester.makepyfile(LISTS)
    probe.run().assert_outcomes(passed=9)


def test_a_list_on_the_command_line_makes_one_test_of_each_value_too(probe):
    probe.pytester.makepyfile("def test_x(): pass\ndef test_y(sandbox): pass")
    option = '--sandbox-set=mem=["1M","2M"]'
    made = ["test_y[mem=1M]", "test_y[mem=2M]"]
    assert list(probe.specs(option, "--sandbox-all")) == ["test_x[mem=1M]", "test_x[mem=2M]", *made]
    assert list(probe.specs(option)) == ["test_x", *made]


def test_a_list_on_what_cannot_be_parametrised_is_told(probe):
    probe.pytester.makepyfile(
        """
        import pytest, unittest
        @pytest.mark.sandbox(mem=["1M", "2M"])
        class TestA(unittest.TestCase):
            def test_x(self): pass
        """
    )
    (problem,) = probe.problems()
    assert "mem=['1M', '2M']: a list makes one test of each value, for test functions only" in problem


def test_a_bad_value_in_a_list_names_the_test_that_it_makes(probe):
    probe.pytester.makepyfile(test_a="import pytest\n@pytest.mark.sandbox(mem=['1M', 'lots'])\ndef test_x(): pass")
    (problem,) = probe.problems()
    assert problem.startswith("test_a.py::test_x[mem=lots]: sandbox marker: mem='lots': not a size")


def test_settings_have_defaults(probe):
    probe.pytester.makepyfile("def test_x(): pass")
    assert probe.settings() == {
        "all": False,
        "off": False,
        "unavailable": "fail",
        "cgroup_parent": None,
        "pool": 2,
        "host_fixtures": [],
        "box_fixtures": [],
        "shared_paths": [],
        "report": 10,
        "json": None,
        "html": None,
        "keep": False,
        "shell": False,
        "doctor": False,
        "suggest": False,
        "baseline": None,
        "fail_on_increase": None,
        "budget_mem": None,
        "budget_cpu": None,
        "rootdir": str(probe.pytester.path),
    }


INI = {
    "sandbox_all": "true",
    "sandbox_unavailable": "skip",
    "sandbox_cgroup_parent": "/ini",
    "sandbox_host_fixtures": "server database",
    "sandbox_box_fixtures": "pool",
    "sandbox_shared_paths": "da ta\n    /abs/x",
    "sandbox_pool": "5",
}


def test_settings_come_from_the_ini_and_the_command_line_goes_first(probe, monkeypatch):
    probe.pytester.makepyfile("def test_x(): pass")
    probe.pytester.makeini("[pytest]\n" + "\n".join(f"{name} = {value}" for name, value in INI.items()))
    found = probe.settings()
    assert found["all"] is True
    assert found["unavailable"] == "skip"
    assert found["cgroup_parent"] == "/ini"
    assert found["host_fixtures"] == ["server", "database"]
    assert found["box_fixtures"] == ["pool"]
    assert found["shared_paths"] == [f"{probe.pytester.path}/da ta", "/abs/x"]
    assert found["pool"] == 5
    monkeypatch.setenv("PYTEST_NSBOX_CGROUP_PARENT", "/environment")
    assert probe.settings()["cgroup_parent"] == "/environment"
    found = probe.settings("--sandbox-unavailable=run", "--sandbox-cgroup-parent=/option", "--sandbox-report=all")
    assert (found["unavailable"], found["cgroup_parent"], found["report"]) == ("run", "/option", None)
    assert probe.settings("--sandbox-report=none")["report"] == 0
    assert probe.settings("--sandbox-report=3", "--sandbox-json=x.json")["json"] == "x.json"


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="the TOML table came with pytest 9")
def test_the_toml_table_of_pytest_9_takes_its_own_types(probe):
    probe.pytester.makepyfile("def test_x(): pass")
    probe.pytester.makepyprojecttoml(
        """
        [tool.pytest]
        sandbox_all = true
        sandbox_pool = 5
        sandbox_defaults = ["mem=64M"]
        sandbox_host_fixtures = ["server"]
        """
    )
    assert probe.specs() == {"test_x": {"mem": "64M", "swap": "0"}}
    assert probe.settings()["pool"] == 5


def test_the_marker_is_known_and_told(probe):
    probe.pytester.makepyfile("import pytest\n@pytest.mark.sandbox\ndef test_x(): pass")
    assert probe.run("--strict-markers").ret == 0
    probe.run("--markers").stdout.fnmatch_lines(["@pytest.mark.sandbox(cpu=..., mem=..., *): run the test in a box*"])


def test_help_tells_every_option_ini_and_key(probe):
    text = probe.run("--help").stdout.str()
    options = "all off set report json html keep shell doctor unavailable cgroup-parent"
    for name in options.split():
        assert f"--sandbox-{name}" in text
    for name in (*INI, "sandbox_defaults"):
        assert name in text
    assert "cpu=20%" in text


def test_many_tests_share_one_spec(pytester, probe):
    probe.pytester.makepyfile("import pytest\n@pytest.mark.parametrize('a', range(100))\ndef test_x(a): pass")
    probe.pytester.makeconftest(
        """
        import pytest
        from pytest_nsbox import settings
        def pytest_collection_finish(session):
            specs = {id(item.stash[settings.SPEC]) for item in session.items}
            assert len(session.items) == 100 and len(specs) == 1
        """
    )
    assert probe.run("--sandbox-all", "--sandbox-set=mem=1M").ret == 0


def test_the_cpus_of_the_host_are_told_by_number():
    cpus = host_facts(Settings()).cpus
    assert cpus
    assert cpus == tuple(sorted(set(cpus)))


def test_what_boxes_may_have_together_is_looked_up_only_for_limits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settings, "budget", lambda _settings: (1e12, 1e3))
    hosts = settings._Hosts(Settings(), None)
    assert [
        getattr(hosts.facts_for([Layer(values, "")]), "budget_mem", None)
        for values in ({}, {"pids": 5}, {"cpu": "5%"}, {"mem": "64M"})
    ] == [None, None, 1e12, 1e12]
