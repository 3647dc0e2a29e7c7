"""The warden's process that is started on a guess."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pytest_nsbox import early


def is_there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize(
    "words", [["tests", "--sandbox-all"], ["--sandbox-all", "--cov=package", "--color=yes"]], ids=" ".join
)
def test_a_guess_that_was_right_is_what_the_caller_gets(words: list[str]):
    early.start(words)
    guessed = early._started
    assert guessed is not None
    spawned = early.take(wanted=True)
    assert spawned is guessed
    spawned.discard()
    assert not is_there(spawned.pid)


def test_a_guess_that_was_wrong_ends():
    early.start(["--sandbox-all"])
    guessed = early._started
    assert guessed is not None
    assert is_there(guessed.pid)
    assert early.take(wanted=False) is None
    assert not is_there(guessed.pid)


@pytest.mark.parametrize("words", [[], ["--sandbox-all", "-n2"], ["--sandbox-all", "--collect-only"]], ids=" ".join)
def test_without_a_guess_the_caller_gets_one_all_the_same(words: list[str]):
    early.start(words)
    assert early._started is None
    assert early.take(wanted=False) is None
    spawned = early.take(wanted=True)
    assert spawned is not None
    spawned.discard()


@pytest.mark.parametrize("wrong", ["--sandbox-off", "--no-such-option"])
def test_nothing_is_left_of_a_guess_in_a_run_without_boxes(tmp_path, wrong: str):
    tmp_path.joinpath("test_it.py").write_text("def test_it(): pass\n", encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "nsbox", "--sandbox-all", wrong, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ("1 passed" in done.stdout) == (wrong == "--sandbox-off"), done.stdout + done.stderr
