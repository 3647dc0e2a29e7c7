import multiprocessing
import os

import pytest


def make_pool():
    """The code under test: as many workers as there are CPUs, which is what Pool() does without a number."""
    return multiprocessing.Pool()


@pytest.mark.sandbox(cpu=1)
def test_the_bug():
    with make_pool() as pool:
        print(f"one CPU, and {pool._processes} worker(s) by the machine's {os.cpu_count()} CPU(s)")
        assert pool._processes == os.cpu_count()


@pytest.mark.sandbox(cpu=1, proc="limits")
def test_the_bug_is_gone():
    with make_pool() as pool:
        print(f"one CPU, and {pool._processes} worker(s)")
        assert pool._processes == os.cpu_count() == 1
