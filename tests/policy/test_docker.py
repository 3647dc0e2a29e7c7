"""Docker's options as keys of a spec."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_nsbox.policy.docker import read_options
from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.spec import Layer, Spec


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ({"memory": "64m", "read_only": True, "privileged": False}, {"mem": "64m", "readonly": True}),
        ({"memory": "64m", "memory_swap": "96m"}, {"mem": "64m", "swap": "32M"}),
        ({"cpus": "1.5", "pids_limit": "10", "cpu_shares": "512"}, {"cpu": 1.5, "pids": 10, "cpu_shares": 512}),
        ({"cpu_quota": "20000"}, {"cpu": 0.2}),
        ({"cpu_quota": "20000", "cpu_period": "40000"}, {"cpu_period": "40.0ms", "cpu": 0.5}),
        ({"cpuset_cpus": "0"}, {"cpuset": "0"}),
        ({"ulimit": ["nofile=10:20", "core=0"]}, {"ulimits": {"nofile": [10, 20], "core": 0}}),
        ({"env": ["A=1", "B", "C", "D="]}, {"env": {"A": "1", "B": "here", "D": ""}}),
        ({"volume": ["/a:/b:ro"]}, {"volumes": ["/a:/b:ro"]}),
        ({"tmpfs": ["/a", "/b:size=1m,rw", "/c:2M"]}, {"tmpfs": {"/a": None, "/b": "1m", "/c": "2M"}}),
        ({"mount": ["type=bind,source=/a,target=/b,readonly"]}, {"volumes": [["/a", "/b", "ro"]]}),
        ({"mount": ["src=name,dst=/b"]}, {"volumes": [["name", "/b", "rw"]]}),
        ({"mount": ["type=tmpfs,destination=/b,tmpfs-size=1m"]}, {"tmpfs": {"/b": "1m"}}),
        ({"hostname": "h", "user": "1:2", "workdir": "/w", "net": "none"},
         {"hostname": "h", "user": "1:2", "workdir": "/w", "net": "none"}),
    ],
)  # fmt: skip
def test_each_option_is_a_key(given: dict[str, Any], keys: dict[str, object]):
    assert read_options(given, {"B": "here"}) == keys
    Spec.build([Layer(keys, "nsbox run")])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"memory_swap": "1g"}, "--memory-swap without --memory"),
        ({"memory": "2g", "memory_swap": "1g"}, "--memory-swap 1g is less than --memory 2g"),
        ({"cpus": "1", "cpu_quota": "5"}, "--cpus and --cpu-quota say the same"),
        ({"cpu_quota": "x"}, "--cpu-quota x: not a number of microseconds"),
        ({"env": ["=1"]}, "-e =1: no name"),
        ({"ulimit": ["nofile"]}, "--ulimit nofile: not a limit"),
        ({"tmpfs": ["/a:odd"]}, "the option 'odd' is not known here"),
        ({"mount": ["type=bind,source=/a"]}, "no target"),
        ({"mount": ["type=odd,source=/a,target=/b"]}, "no type 'odd'"),
        ({"mount": ["type=bind,source=name,target=/b"]}, "source 'name' is no path"),
        ({"mount": ["source=/a,target=/b,odd=1"]}, "no 'odd' is known"),
    ],
)
def test_what_is_wrong_is_told(given: dict[str, Any], text: str):
    with pytest.raises(BadValueError) as caught:
        read_options(given, {})
    assert text in str(caught.value)
    assert "(accepted: " in str(caught.value)
