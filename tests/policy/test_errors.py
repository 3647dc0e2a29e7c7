from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys

import pytest

import pytest_nsbox
from pytest_nsbox.policy.errors import ERRNO_TEXTS, BadValueError, KernelError, SpecError, SpecProblems

EVERY = [
    pytest_nsbox.SandboxError("one\ntwo"),
    pytest_nsbox.SandboxOOM("one"),
    pytest_nsbox.SandboxTimeout("one"),
    pytest_nsbox.SandboxCrash("one"),
    pytest_nsbox.BoxFailed("one"),
    BadValueError("not a size", "bytes"),
    SpecError("mem", "'x'", "bytes", "not a size", "sandbox marker"),
    KernelError("mount tmpfs", "/tmp", errno.EPERM),
]


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_every_error_survives_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_several_problems_survive_pickling_together():
    problems = SpecProblems((SpecError("a", "1", "", "no"), SpecError("b", "2", "c", "no")))
    again = pickle.loads(pickle.dumps(problems))
    assert str(again) == str(problems) == "a=1: no\nb=2: no (accepted: c)"
    assert [each.key for each in again.problems] == ["a", "b"]


def test_the_public_errors_bear_the_public_name():
    assert repr(pytest_nsbox.SandboxOOM) == "<class 'pytest_nsbox.SandboxOOM'>"
    for name in ("SandboxOOM", "SandboxTimeout", "SandboxCrash", "BoxFailed"):
        assert issubclass(getattr(pytest_nsbox, name), pytest_nsbox.SandboxError)


def test_a_sandbox_error_knows_its_first_line():
    assert pytest_nsbox.SandboxCrash("killed by SIGSEGV\nFatal Python error").headline == "killed by SIGSEGV"


def test_a_kernel_error_prints_the_call_the_target_and_the_reason():
    assert str(KernelError("mount tmpfs", "/tmp", errno.EPERM)) == "mount tmpfs /tmp: Operation not permitted"
    assert str(KernelError("unshare", "", errno.ENOSPC)) == "unshare: No space left on device"
    assert str(KernelError("unshare", "", 4095)) == "unshare: errno 4095"
    assert not isinstance(KernelError("a", "b", 1), OSError)


@pytest.mark.parametrize("number", sorted(ERRNO_TEXTS))
def test_the_texts_of_errno_are_those_of_the_c_library(number):
    assert ERRNO_TEXTS[number] == os.strerror(number)


def test_a_problem_names_place_key_value_and_what_is_accepted():
    error = SpecError("mem", "'lots'", "bytes", "not a size", "sandbox marker")
    assert str(error) == "sandbox marker: mem='lots': not a size (accepted: bytes)"
    assert (error.key, error.value, error.accepted, error.place) == ("mem", "'lots'", "bytes", "sandbox marker")


def test_importing_the_package_imports_nothing_else():
    told = "import sys; before = set(sys.modules); import pytest_nsbox; print(*sorted(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True).stdout.split()
    assert found == ["__future__", "pytest_nsbox", "pytest_nsbox.policy", "pytest_nsbox.policy.errors"]


def test_what_the_warden_reads_of_policy_needs_no_slow_module():
    told = (
        "import sys; import pytest_nsbox.policy.spec, pytest_nsbox.policy.limits;"
        "print(*{'dataclasses', 'typing', 're', 'enum', 'inspect', 'pytest_nsbox.policy.keys'} & set(sys.modules))"
    )
    path = os.path.dirname(os.path.dirname(pytest_nsbox.__file__))
    code = f"import sys; sys.path.insert(0, {path!r}); {told}"
    found = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.split() == []
