"""Usage kept from run to run, and what counts as growth."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_nsbox.policy.baseline import KEPT, Baseline, BaselineError, Growth, parse_percent, render

MIB = 1 << 20
HOST = {"system": "Linux", "machine": "x86_64", "cpus": 2, "memory_bytes": 8 << 30, "python": "3.12.1", "kernel": "6"}


def kept(*samples: tuple[int, float]) -> Baseline:
    found = Baseline()
    for peak, cpu in samples:
        found.add({"t": {"memory_peak_bytes": peak, "cpu_s": cpu, "wall_s": 1.0}}, HOST)
    return found


def test_runs_are_kept_up_to_a_number_and_survive_the_file():
    found = kept(*((number, number / 10) for number in range(15)))
    assert found.tests == {"t": {"memory_peak_bytes": [*range(5, 15)], "cpu_s": [n / 10 for n in range(5, 15)]}}
    assert len(found.tests["t"]["cpu_s"]) == KEPT
    assert Baseline.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_memory_is_judged_by_the_largest_peak_and_from_the_first_run_on():
    found = kept((100 * MIB, 1.0), (110 * MIB, 1.0))
    assert found.grown({"t": {"memory_peak_bytes": 132 * MIB}}, 20, HOST) == []
    now: dict[str, Any] = {"t": {"memory_peak_bytes": 140 * MIB, "cpu_s": 99.0}}
    (growth,) = found.grown(now, 20, HOST)
    assert growth == Growth("t", "memory_peak_bytes", 110 * MIB, 140 * MIB)
    assert round(growth.percent) == 27


def test_a_few_pages_are_no_growth():
    found = kept((MIB, 1.0))
    assert found.grown({"t": {"memory_peak_bytes": 2 * MIB}}, 0, HOST) == []
    assert len(found.grown({"t": {"memory_peak_bytes": 2 * MIB + 1}}, 0, HOST)) == 1


def test_cpu_time_is_judged_from_three_runs_of_this_machine_and_against_the_slowest():
    now = {"t": {"cpu_s": 1.9}}
    assert kept((1, 1.0), (1, 1.5)).grown(now, 20, HOST) == []
    found = kept((1, 1.0), (1, 1.5), (1, 1.2))
    assert found.grown({"t": {"cpu_s": 1.7}}, 20, HOST) == []
    assert found.grown(now, 20, HOST) == [Growth("t", "cpu_s", 1.5, 1.9)]
    assert found.grown(now, 20, {**HOST, "cpus": 64}) == []
    assert found.grown(now, 20, {**HOST, "kernel": "7"}) == [Growth("t", "cpu_s", 1.5, 1.9)]
    assert kept((1, 0.0), (1, 0.0), (1, 0.001)).grown({"t": {"cpu_s": 0.02}}, 20, HOST) == []


def test_another_machine_begins_its_cpu_times_anew():
    found = kept((MIB, 1.0), (MIB, 1.1))
    found.add({"t": {"memory_peak_bytes": 2 * MIB, "cpu_s": 5.0}}, {**HOST, "python": "3.13.0"})
    assert found.tests == {"t": {"memory_peak_bytes": [MIB, MIB, 2 * MIB], "cpu_s": [5.0]}}


def test_what_was_not_judged_is_told():
    found = kept((1, 1.0))
    usages: dict[str, Any] = {"t": {"cpu_s": 1.0}, "new": {"cpu_s": 1.0}}
    assert found.notes(usages, HOST) == [
        "1 test not in the baseline",
        "CPU time is judged from 3 runs in the baseline on; some tests have 1",
    ]
    assert found.notes({"t": usages["t"]}, {**HOST, "cpus": 1}) == [
        "CPU time was not judged: the baseline is of another machine or Python"
    ]
    assert kept((1, 1.0), (1, 1.0), (1, 1.0)).notes({"t": usages["t"]}, HOST) == []


def test_the_largest_growth_comes_first_in_the_table():
    usages: dict[str, Any] = {
        "a": {"memory_peak_bytes": 12 * MIB},
        "b": {"memory_peak_bytes": 30 * MIB},
    }
    found = Baseline(dict(HOST), {name: {"memory_peak_bytes": [10.0 * MIB]} for name in "ab"})
    assert render(found.grown(usages, 10, HOST)) == [
        "test  counter  baseline  now  growth",
        "b     memory        10M  30M   +200%",
        "a     memory        10M  12M    +20%",
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "not a baseline of schema 1"),
        ({"schema": 2}, "not a baseline of schema 1"),
        ({"schema": 1, "host": {}}, "no tables 'host' and 'tests'"),
        ({"schema": 1, "host": {}, "tests": {"t": {"cpu_s": ["1"]}}}, "the entry of 't' has no lists of numbers"),
        ({"schema": 1, "host": {}, "tests": {"t": 3}}, "the entry of 't' has no lists of numbers"),
    ],
)
def test_other_files_are_refused(document: object, message: str):
    with pytest.raises(BaselineError, match=message):
        Baseline.from_json(document)


def test_percentages():
    assert [parse_percent(text) for text in ("20", "20%", " 7.5 ", "0")] == [20, 20, 7.5, 0]
    for text in ("", "x", "-1", "nan", "inf"):
        with pytest.raises(ValueError, match=r"."):
            parse_percent(text)
