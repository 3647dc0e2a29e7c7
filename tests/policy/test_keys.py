from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy.errors import SpecProblems
from pytest_nsbox.policy.keys import KEYS
from pytest_nsbox.policy.mounts import Tmpfs, Volume
from pytest_nsbox.policy.record import fields
from pytest_nsbox.policy.spec import HostFacts, Layer, Spec

HOST = HostFacts(cpus=(0, 1))


def spec(**values) -> Spec:
    return Spec.build([Layer(values, "sandbox marker")])


def problems(*layers: Layer, host: HostFacts | None = None, **values) -> list[str]:
    with pytest.raises(SpecProblems) as caught:
        Spec.build([*layers, *([Layer(values, "sandbox marker")] if values else [])], host=host)
    return [str(problem) for problem in caught.value.problems]


def test_every_key_is_a_field_and_every_field_a_key():
    assert sorted(KEYS) == sorted(fields(Spec))


@pytest.mark.parametrize(
    ("key", "written", "parsed"),
    [
        ("cpu", "20%", 0.2),
        ("cpu_shares", 512, 512),
        ("cpuset", "0-1", (0, 1)),
        ("mem", "256M", 2**28),
        ("pids", 64, 64),
        ("ulimits", {"nofile": 256, "core": [0, "unlimited"]}, (("core", 0, -1), ("nofile", 256, 256))),
        ("disk", "1G", 2**30),
        ("timeout", "30s", 30.0),
        ("net", True, "host"),
        ("net", "host", "host"),
        ("net", False, "none"),
        ("net", "none", "none"),
        ("readonly", True, True),
        ("volumes", ["/a:/b:ro"], (Volume("/a", "/b", True),)),
        ("tmpfs", {"/t": "1M"}, (Tmpfs("/t", 2**20),)),
        ("env", {"A": "1", "B": 2, "C": None}, (("A", "1"), ("B", "2"), ("C", None))),
        ("hostname", "box-1.example", "box-1.example"),
        ("user", "nobody", "nobody"),
        ("user", 1000, "1000"),
        ("user", "1000:1000", "1000:1000"),
        ("workdir", "/tmp", "/tmp"),
        ("proc", "host", "host"),
        ("cgroup_view", True, True),
        ("privileged", True, True),
        ("seccomp", "none", "none"),
        ("seccomp", "default", "default"),
        ("caps", ["CAP_NET_RAW", "default"], ("net_raw", "default")),
        ("caps", [], ()),
        ("clock", {"monotonic": 86400, "boottime": "1h"}, (("boottime", 3600.0), ("monotonic", 86400.0))),
        ("clock", {"monotonic": -5}, (("monotonic", -5.0),)),
        ("scope", "function", "function"),
        ("scope", "class", "class"),
        ("artifacts", ["*.log", "/tmp/x*"], ("*.log", "/tmp/x*")),
        ("artifacts", "*.log", ("*.log",)),
    ],
)
def test_a_key_is_parsed_into_its_field(key, written, parsed):
    assert getattr(spec(**{key: written}), key) == parsed


BAD = [
    ("cpu", "fast", "not a share of CPUs", "percent of one CPU"),
    ("cpu_period", "2s", "out of range", "1 ms to 1 s"),
    ("cpu_period", "x", "not a duration", "1 ms to 1 s"),
    ("cpu_shares", 1, "out of range", "2 to 262144"),
    ("cpuset", "a", "not a set of CPUs", "such as '0-1,3'"),
    ("mem", "lots", "not a size", "such as '256M'"),
    ("mem", 0, "a size of zero", "such as '256M'"),
    ("mem", True, "not a size", "such as '256M'"),
    ("swap", "x", "not a size", "such as '256M'"),
    ("pids", 0, "out of range", "1 to 4194304"),
    ("pids", 4194305, "out of range", "1 to 4194304"),
    ("pids", "many", "not a whole number", "1 to 4194304"),
    ("ulimits", 256, "not a table of limits", "nofile"),
    ("ulimits", {"files": 1}, "unknown ulimit 'files'", "nofile"),
    ("ulimits", {"nofile": "x"}, "'nofile' is not a whole number", "'unlimited'"),
    ("ulimits", {"nofile": [2, 1]}, "'nofile' has a soft limit above the hard one", "[SOFT, HARD]"),
    ("ulimits", {"nofile": [-1, 1]}, "'nofile' has a soft limit above the hard one", "[SOFT, HARD]"),
    ("ulimits", {"nofile": [1, 2, 3]}, "'nofile' has 3 values", "[SOFT, HARD]"),
    ("ulimits", {"nofile": True}, "'nofile' is not a whole number", "'unlimited'"),
    ("disk", "x", "not a size", "such as '256M'"),
    ("timeout", 0, "not a duration above zero", "such as '30s'"),
    ("net", 1, "not a text or a path", "'host'"),
    ("net", "False", "looks like a truth value, but is a text", "True or 'host', False or 'none'"),
    ("net", "", "an empty text", "'host'"),
    ("readonly", "yes", "not a truth value", "True or False"),
    ("readonly", 1, "not a truth value", "True or False"),
    ("volumes", ["/a"], "no absolute DST", "SRC:DST[:ro]"),
    ("volumes", ["na me:/b"], "'na me' is no name of a volume", "'/' or '.' in front"),
    ("tmpfs", ["t"], "'t' is not an absolute path", "DST[:SIZE]"),
    ("tmpfs", {"/t": "x"}, "not a size", "such as '256M'"),
    ("env", ["A=1"], "not a table", "{NAME: VALUE}"),
    ("env", {"A=": "1"}, "'A=' is no name of a variable", "{NAME: VALUE}"),
    ("env", {"": "1"}, "'' is no name of a variable", "{NAME: VALUE}"),
    ("env", {"A": "x\0"}, "'A' has a NUL character in its value", "{NAME: VALUE}"),
    ("env", {"A": True}, "not a text or a path", "{NAME: VALUE}"),
    ("env", {1: "x"}, "not a table", "{NAME: VALUE}"),
    ("hostname", "x" * 65, "not a hostname", "1 to 64 letters"),
    ("hostname", "a b", "not a hostname", "1 to 64 letters"),
    ("user", "1:", "not a user", "UID:GID"),
    ("user", "name:1", "not a user", "UID:GID"),
    ("user", -1, "not a user", "UID:GID"),
    ("user", 4294900000, "not an id of a box's, which go up to 4294899999", "UID:GID"),
    ("user", "1:4294967295", "not an id of a box's, which go up to 4294899999", "UID:GID"),
    ("user", "a b", "not a user", "UID:GID"),
    ("user", True, "not a text or a path", "UID:GID"),
    ("workdir", "here", "not an absolute path", "an absolute path"),
    ("proc", "fake", "not one of them", "'host' or 'limits'"),
    ("proc", 1, "not one of them", "'host' or 'limits'"),
    ("cgroup_view", None.__class__, "not a truth value", "True or False"),
    ("privileged", "true", "not a truth value", "True or False"),
    ("caps", ["net"], "'net' is no capability", "'default' are Docker's"),
    ("caps", 1, "not a list", "'all' are all"),
    ("seccomp", "mine.json", "not one of them", "'default' or 'none'"),
    ("clock", {"realtime": 1}, "unknown clock 'realtime'", "'monotonic'"),
    ("clock", {"monotonic": float("nan")}, "'monotonic' is out of range", "'monotonic'"),
    ("clock", {"monotonic": "x"}, "not a duration", "such as '30s'"),
    ("scope", "session", "not one of them", "'function', 'class' or 'module'"),
    ("artifacts", [1], "not a text or a path", "a list of globs"),
    ("artifacts", [""], "an empty text", "a list of globs"),
    ("io", {"bps": 1}, "unknown rate 'bps'", "'rbps': SIZE"),
    ("io", {"riops": 0}, "out of range", "1 or more"),
    ("hugetlb", {"big": 1}, "not a size", "such as '256M'"),
    ("devices", ["dev"], "'dev' is not an absolute path", "/dev/NAME:rw"),
    ("devices", ["/dev/x:q"], "unknown access 'q'", "/dev/NAME:rw"),
    ("devices", ["/dev/x:r"], "'r': whoever can open a device in a box may read and write it", "/dev/NAME:rw"),
    ("devices", ["/etc/passwd"], "'/etc/passwd' is not below /dev", "/dev/NAME:rw"),
    ("hugetlb", {"5": 1}, "no size of pages", "such as {'2MB': '16M'}"),
]


@pytest.mark.parametrize(
    ("key", "value", "reason", "accepted"), BAD, ids=[f"{key}={value!r}" for key, value, *_ in BAD]
)
def test_a_bad_value_is_told_with_key_value_and_what_is_accepted(key, value, reason, accepted):
    (told,) = problems(**{key: value})
    assert told.startswith(f"sandbox marker: {key}={value!r}: {reason} (accepted: ")
    assert accepted in told


def test_an_unknown_key_is_told_with_the_nearest_and_all_known_ones():
    (told,) = problems(memmory=1)
    known = ", ".join(KEYS)
    assert told == f"sandbox marker: unknown key 'memmory' (did you mean 'mem'? known: {known})"
    (told,) = problems(zzz=1)
    assert told == f"sandbox marker: unknown key 'zzz' (known: {known})"


def test_all_problems_of_all_layers_come_at_once():
    found = problems(
        Layer({"mem": "lots", "memmory": 1}, "sandbox marker"),
        Layer({"mem": "256X", "pids": 0}, "ini sandbox_defaults"),
    )
    assert [re.sub(r" \(.*", "", text) for text in found] == [
        "sandbox marker: mem='lots': not a size",
        "sandbox marker: unknown key 'memmory'",
        "ini sandbox_defaults: mem='256X': not a size",
        "ini sandbox_defaults: pids=0: out of range",
    ]


def test_a_long_value_is_cut_in_the_problem():
    (told,) = problems(mem="9" * 1000)
    assert len(told) < 400


def test_layers_merge_key_by_key_and_the_first_wins():
    merged = Spec.build(
        [
            Layer({"mem": "1M"}, "a"),
            Layer({"mem": "2M", "pids": 5, "env": {"A": "1"}}, "b"),
            Layer({"env": {"B": "2"}}, "c"),
        ]
    )
    assert merged == spec(mem="1M", pids=5, env={"A": "1"})


def test_none_takes_a_key_back_to_its_default():
    assert Spec.build([Layer({"mem": None, "net": None}, "a"), Layer({"mem": "2M", "net": False}, "b")]) == Spec()


def test_memory_without_swap_means_no_swap():
    assert spec(mem="1M").swap == 0
    assert spec(mem="1M", swap="2M").swap == 2**21
    assert spec().swap is None


def test_relative_bind_sources_are_joined_to_the_root_directory():
    built = Spec.build([Layer({"volumes": ["./a b:/x", "../c:/y", "/d:/z", "name:/n"]}, "")], rootdir="/root/dir")
    assert [volume.source for volume in built.volumes] == ["/root/dir/a b", "/root/dir/../c", "/d", "name"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"swap": "1M"},
            "swap='1M': swap is counted on top of mem, which is not set (accepted: swap together with mem)",
        ),
        (
            {"swap": "1M", "mem": None},
            "swap='1M': swap is counted on top of mem, which is not set (accepted: swap together with mem)",
        ),
        (
            {"cpu_period": "50ms"},
            "cpu_period='50ms': the period of a quota that is not set (accepted: cpu_period together with cpu)",
        ),
        (
            {"readonly": True, "disk": "1M"},
            "disk='1M': a readonly root has no scratch layer to limit (accepted: disk without readonly)",
        ),
        (
            {"volumes": ["/a:/b/c", "/d:/b//c/"]},
            "volumes=['/a:/b/c', '/d:/b//c/']: '/b/c' is mounted twice (also in volumes) (accepted: each DST once)",
        ),
        (
            {"volumes": ["/a:/b"], "tmpfs": ["/b"]},
            "tmpfs=['/b']: '/b' is mounted twice (also in volumes) (accepted: each DST once)",
        ),
    ],
)
def test_a_contradiction_is_told(values, told):
    assert problems(**values) == [f"sandbox marker: {told}"]


def test_a_contradiction_over_layers_names_the_place_of_the_key():
    (told,) = problems(Layer({"mem": None}, "sandbox marker"), Layer({"mem": "1G", "swap": "1M"}, "--sandbox-set"))
    assert told.startswith("--sandbox-set: swap='1M': swap is counted on top of mem")


def test_a_needed_key_that_is_wrong_is_the_only_problem():
    assert len(problems(mem="lots", swap="1M")) == 1
    assert len(problems(cpu="x", cpu_period="50ms")) == 1


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"cpu": 3}, "cpu=3: more CPUs than the host has (accepted: up to 2, or '200%')"),
        ({"cpu": "201%"}, "cpu='201%': more CPUs than the host has (accepted: up to 2, or '200%')"),
        ({"cpuset": "0-3"}, "cpuset='0-3': CPUs that the host does not have (accepted: of '0-1')"),
        (
            {"disk": "256M", "mem": "256M"},
            "disk='256M': the scratch layer lies in memory, which mem='256M' limits (accepted: a size below mem)",
        ),
    ],
)
def test_what_the_host_cannot_give_is_a_problem(values, told):
    assert problems(host=HOST, **values) == [f"sandbox marker: {told}"]


def test_what_the_host_can_give_is_none():
    assert Spec.build([Layer({"cpu": 2, "cpuset": "0-1", "disk": "255M", "mem": "256M"}, "")], host=HOST).cpu == 2
    on_disk = HostFacts(cpus=(0,), scratch_on_tmpfs=False)
    assert Spec.build([Layer({"disk": "2G", "mem": "1G"}, "")], host=on_disk).disk == 2**31


def test_a_list_of_memory_limits_belongs_to_a_test_function():
    assert problems(mem=["64M", "128M"])[0].startswith(
        "sandbox marker: mem=['64M', '128M']: a list makes one test of each value, for test functions only (accepted: "
    )
    assert problems(cpu=[])[0].startswith("sandbox marker: cpu=[]: an empty list (accepted: ")


def test_a_list_behind_the_value_of_one_of_its_tests_is_no_problem():
    assert Spec.build([Layer({"mem": "64M"}, "parameter"), Layer({"mem": ["64M", "128M"]}, "function")]).mem == 2**26


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=5)
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map(
    lambda names: "/" + "/".join(names)
)
SIZES = st.integers(1, 2**50)
LIMITED = st.fixed_dictionaries(
    {"mem": SIZES, "cpu": st.floats(0.001, 64)},
    optional={
        "swap": SIZES,
        "cpu_period": st.integers(1000, 1_000_000).map(lambda us: f"{us}us"),
        "cpu_shares": st.integers(2, 262144),
        "cpuset": st.sets(st.integers(0, 99), min_size=1).map(sorted),
        "pids": st.integers(1, 10**6),
        "disk": SIZES,
        "timeout": st.floats(1e-6, 1e9),
        "net": st.sampled_from([True, False, "host", "none"]),
        "ulimits": st.dictionaries(st.sampled_from(["nofile", "core", "stack"]), st.integers(-1, 2**40)),
        "volumes": st.lists(st.tuples(PATHS, PATHS, st.sampled_from(["ro", "rw"])), unique_by=lambda parts: parts[1]),
        "env": st.dictionaries(
            NAMES.filter(lambda name: "=" not in name), st.none() | st.text(st.characters(exclude_characters="\0"))
        ),
        "user": st.sampled_from(["nobody", "0:0", 1000]),
        "clock": st.dictionaries(st.sampled_from(["monotonic", "boottime"]), st.integers(-1000, 10**9)),
        "artifacts": st.lists(NAMES),
        "privileged": st.booleans(),
    },
) | st.fixed_dictionaries({"tmpfs": st.dictionaries(PATHS, st.none() | SIZES), "readonly": st.booleans()})


@given(LIMITED)
def test_any_spec_survives_json_and_pickles_hashes_and_builds_again_from_what_it_shows(values):
    built = spec(**values)
    assert Spec.from_json(json.loads(json.dumps(built.to_json()))) == built
    assert Spec.build([Layer(built.shown(), "")]) == built
    json.dumps(built.shown())
    hash(built)


@given(LIMITED)
def test_layers_in_any_split_make_the_same_spec(values):
    whole = spec(**values)
    names = sorted(values)
    parts = [Layer({name: values[name]}, name) for name in names]
    assert Spec.build(parts) == Spec.build(parts[::-1]) == whole


def test_a_spec_in_json_holds_only_what_differs_from_the_default():
    assert Spec().to_json() == {}
    assert spec(mem="1M", net=False).to_json() == {"mem": 2**20, "swap": 0, "net": "none"}
    with pytest.raises(TypeError, match="memmory"):
        Spec.from_json({"memmory": 1})


def test_tests_that_differ_in_timeout_and_artifacts_may_share_a_ready_box():
    one = spec(mem="1M", timeout=3, artifacts=["x"])
    other = spec(mem="1M")
    assert one != other
    assert one.box_key() == other.box_key() == other
    assert one.box_key() != spec(mem="2M").box_key()


def test_a_spec_shows_itself_in_the_markers_spelling():
    shown = spec(cpu=0.2, mem=2**28, net=False, volumes=["./a:/b:ro"], tmpfs=["/t:1M"], ulimits={"nofile": 5}).shown()
    assert shown == {
        "cpu": "20%",
        "mem": "256M",
        "swap": "0",
        "net": False,
        "volumes": ["./a:/b:ro"],
        "tmpfs": ["/t:1M"],
        "ulimits": {"nofile": 5},
    }
