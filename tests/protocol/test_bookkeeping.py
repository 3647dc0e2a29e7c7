"""What tests note down in plugins of pytest's own."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_nsbox import bookkeeping


def an_item(pytester: pytest.Pytester, *options: str) -> tuple[pytest.Item, Any]:
    """An item, and pytest's writer of junit.xml if there is one."""
    config = pytester.parseconfigure(*options)
    (item,) = pytester.genitems([pytester.getmodulecol("def test_it(): pass\n")])
    item.config = config
    return item, bookkeeping._junit(config)


def test_properties_and_attributes_go_from_one_process_to_the_other(pytester: pytest.Pytester):
    item, xml = an_item(pytester, "--junitxml=x.xml")
    xml.global_properties.append(("before", "1"))
    notes = bookkeeping.Notes(item)
    assert notes.new() == {}
    xml.global_properties.append(("a", "b"))
    xml.node_reporter(item.nodeid).add_attribute("c", "d")
    told = notes.new()
    assert told == {"testsuite_properties": [("a", "b")], "xml_attributes": {"c": "d"}}
    assert notes.new() == {}
    bookkeeping.take(item, {**told, "xml_attributes": {"e": "f"}})
    assert xml.global_properties == [("before", "1"), ("a", "b"), ("a", "b")]
    assert xml.node_reporter(item.nodeid).attrs == {"c": "d", "e": "f"}


def test_without_junit_they_lead_nowhere(pytester: pytest.Pytester):
    item, xml = an_item(pytester)
    assert xml is None
    assert bookkeeping.Notes(item).new() == {}
    bookkeeping.take(item, {"testsuite_properties": [["a", "b"]], "xml_attributes": {"c": "d"}})


def test_failed_subtests_are_counted_for_each_test(pytester: pytest.Pytester):
    item, _ = an_item(pytester)
    table = bookkeeping._failed_subtests(item.config)
    if table is None:
        pytest.skip("this pytest has no subtests")
    notes = bookkeeping.Notes(item)
    table[bookkeeping._key(item)] = 2
    assert notes.new() == {"failed_subtests": 2}
    bookkeeping.take(item, {"failed_subtests": 5})
    assert table[bookkeeping._key(item)] == 5
    notes.begin(item)
    assert notes.new() == {}
