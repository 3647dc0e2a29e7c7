"""Which capabilities and system calls a box's processes are left."""

from __future__ import annotations

import pytest

from pytest_nsbox.policy import syscalls
from pytest_nsbox.policy.confinement import ALL, DEFAULT, NAMES, Confinement, confine, parse_caps
from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.spec import Spec


def test_a_container_has_what_dockers_have():
    found = confine(Spec(), container=True)
    assert found == Confinement(DEFAULT, filtered=True)
    assert found is not None
    assert found.mask == 0xA80425FB  # as /proc/self/status shows it in a container of Docker's
    assert len(NAMES) == len(ALL) == 41


@pytest.mark.parametrize(
    ("spec", "container", "expected"),
    [
        (Spec(), False, None),
        (Spec(privileged=True), True, None),
        (Spec(caps=("all",), seccomp="none"), True, None),
        (Spec(seccomp="none"), True, Confinement(DEFAULT, filtered=False)),
        (Spec(caps=("default", "net_admin")), True, Confinement(DEFAULT | {"net_admin"}, filtered=True)),
        (Spec(caps=()), True, Confinement(frozenset(), filtered=True)),
        (Spec(seccomp="default"), False, Confinement(ALL, filtered=True)),
        (Spec(caps=("kill",)), False, Confinement(frozenset({"kill"}), filtered=False)),
    ],
)
def test_keys_widen_and_narrow_it(spec: Spec, container: bool, expected: Confinement | None):
    assert confine(spec, container=container) == expected


def test_names_are_read_as_docker_and_the_kernel_write_them():
    assert parse_caps(["CAP_NET_RAW", "net_raw", "default"]) == ("net_raw", "default")
    assert parse_caps("all") == ("all",)
    for wrong in (["net"], [1], 5, [None]):
        with pytest.raises(BadValueError):
            parse_caps(wrong)


def test_a_capability_gives_back_the_calls_that_need_it():
    nothing, everything = syscalls.refused(frozenset()), syscalls.refused(ALL)
    assert {"mount", "bpf", "reboot", "keyctl", "io_uring_setup"} <= set(nothing)
    assert set(everything) == {name for name in nothing if name in everything}
    assert {"keyctl", "io_uring_setup"} <= set(everything)
    assert not {"mount", "bpf", "reboot"} & set(everything)
    assert set(nothing) <= set(syscalls.NUMBERS)
    for column in range(3):
        numbers = [row[column] for row in syscalls.NUMBERS.values() if row[column] is not None]
        assert len(numbers) == len(set(numbers))
        assert max(filter(None, numbers)) <= syscalls.LAST
