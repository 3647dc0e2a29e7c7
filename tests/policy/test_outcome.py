from __future__ import annotations

import pickle
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox import SandboxCrash, SandboxError, SandboxOOM, SandboxTimeout
from pytest_nsbox.policy.outcome import Ending, classify, oom_line, signal_name
from pytest_nsbox.policy.spec import Spec

MIB = 2**20
LIMITED = Spec(mem=256 * MIB, swap=0, pids=64, timeout=30.0)
PEAK = {"memory_peak_bytes": 256 * MIB}


def test_a_finished_test_told_its_own_end():
    assert classify(Ending(0, finished=True), LIMITED, PEAK) is None
    assert classify(Ending(-9, finished=True, timed_out=True, oom_kills=1), LIMITED, PEAK) is None


def test_an_oom_kill_tells_limit_peak_and_the_key_to_raise():
    error = classify(Ending(-9, oom_kills=1), LIMITED, PEAK)
    assert type(error) is SandboxOOM
    assert str(error) == (
        "OOM-killed: memory limit 256.0 MiB, peak 256.0 MiB\n"
        "raise mem=, e.g. mem='512M' (inherited Python objects are copied when touched)"
    )


def test_an_oom_kill_without_a_peak_counter_leaves_the_peak_out():
    assert str(classify(Ending(-9, oom_kills=1), LIMITED, {})).splitlines()[0] == "OOM-killed: memory limit 256.0 MiB"


def test_an_oom_kill_without_a_limit_of_the_test_blames_what_is_above():
    assert str(classify(Ending(-9, oom_kills=1), Spec(), PEAK)) == (
        "OOM-killed: no memory limit of its own, peak 256.0 MiB\n"
        "the host, or a group above the box, ran out of memory (inherited Python objects are copied when touched)"
    )


@pytest.mark.parametrize(
    ("limit", "hint"), [(256 * MIB, "512M"), (100_000_000, "190M"), (4096, "8K"), (MIB, "2M"), (2**30, "2G")]
)
def test_the_limit_to_try_next_is_about_twice_as_large_and_short_to_write(limit, hint):
    assert f"e.g. mem='{hint}'" in str(classify(Ending(-9, oom_kills=1), Spec(mem=limit), {}))


def test_a_timeout_tells_the_stacks_and_the_key_to_raise():
    error = classify(Ending(-9, timed_out=True, stacks="Thread 0x1:\n  File ...\n"), LIMITED, {})
    assert type(error) is SandboxTimeout
    assert (
        str(error)
        == "timed out after 30.0 s (sandbox timeout)\nThread 0x1:\n  File ...\nraise timeout=, e.g. timeout='60s'"
    )


def test_a_timeout_while_a_subprocess_was_oom_killed_tells_both():
    text = str(classify(Ending(-9, timed_out=True, oom_kills=1), LIMITED, PEAK))
    assert text.splitlines()[0] == "timed out after 30.0 s (sandbox timeout)"
    assert "\nOOM-killed: memory limit 256.0 MiB, peak 256.0 MiB\n" in text
    assert text.endswith("(inherited Python objects are copied when touched)")


def test_a_signal_tells_its_name_and_the_traceback():
    error = classify(Ending(-11, stacks="Fatal Python error: Segmentation fault\n"), LIMITED, {})
    assert type(error) is SandboxCrash
    assert str(error) == "killed by SIGSEGV\nFatal Python error: Segmentation fault"


def test_a_sigkill_without_an_oom_kill_is_a_signal_like_others():
    assert str(classify(Ending(-9), LIMITED, PEAK)) == "killed by SIGKILL"


def test_an_exit_tells_the_status():
    error = classify(Ending(3), LIMITED, {})
    assert type(error) is SandboxCrash
    assert str(error) == "exited with status 3 before the test ended"
    assert str(classify(Ending(0), LIMITED, {})) == "exited with status 0 before the test ended"


def test_an_exit_after_a_subprocess_was_oom_killed_tells_both():
    text = str(classify(Ending(1, oom_kills=1), LIMITED, PEAK))
    assert text.startswith(
        "exited with status 1 before the test ended\nOOM-killed: memory limit 256.0 MiB, peak 256.0 MiB\n"
    )


def test_a_process_of_unknown_end_is_a_crash_too():
    assert str(classify(Ending(None), LIMITED, {})) == "ended before the test ended, without a status"


def test_a_hit_of_the_pids_limit_names_the_key():
    text = str(classify(Ending(-6, pids_hit=True), LIMITED, {}))
    assert text == "killed by SIGABRT\nraise pids=, e.g. pids=128: the limit of 64 processes and threads was met"


@pytest.mark.parametrize(("number", "name", "key"), [(24, "SIGXCPU", "cpu"), (25, "SIGXFSZ", "fsize")])
def test_a_signal_of_an_rlimit_names_its_key(number, name, key):
    spec = Spec(ulimits=((key, 1, 1),))
    told = f"killed by {name}\nraise ulimits={{'{key}': ...}}: the limit on {key} sends this signal"
    assert str(classify(Ending(-number), spec, {})) == told
    assert str(classify(Ending(-number), Spec(), {})) == f"killed by {name}"


@pytest.mark.parametrize("each", [s for s in signal.Signals if s < 32], ids=lambda each: each.name)
def test_signals_have_the_names_of_the_signal_module(each):
    assert signal_name(each.value) == each.name


def test_real_time_and_unknown_signals_have_names_too():
    assert signal_name(34) == "SIGRTMIN"
    assert signal_name(35) == "SIGRTMIN+1"
    assert signal_name(99) == "signal 99"


def test_the_oom_line_serves_a_test_that_survived_as_well():
    assert oom_line(LIMITED, PEAK) == "OOM-killed: memory limit 256.0 MiB, peak 256.0 MiB"


ENDINGS = st.builds(
    Ending,
    st.none() | st.integers(-64, 255),
    timed_out=st.booleans(),
    oom_kills=st.integers(0, 3),
    finished=st.booleans(),
    stacks=st.text(),
    pids_hit=st.booleans(),
)


@given(ENDINGS, st.sampled_from([Spec(), LIMITED, Spec(timeout=0.05)]), st.sampled_from([{}, PEAK]))
def test_any_ending_that_is_not_finished_is_an_error_that_pickles(ending, spec, usage):
    error = classify(ending, spec, usage)
    assert (error is None) == ending.finished
    if error is not None:
        assert isinstance(error, SandboxError)
        assert error.headline
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
