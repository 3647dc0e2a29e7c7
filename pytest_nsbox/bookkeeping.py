"""What tests note down in plugins of pytest's own, besides their reports: for junit.xml, and their failed subtests.

A test's process tells what it has noted since its fork; pytest's process takes that in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest


class Notes:
    """In a test's process: what is new in those plugins."""

    def __init__(self, item: pytest.Item) -> None:
        self._xml = _junit(item.config)
        self._properties = len(self._xml.global_properties) if self._xml is not None else 0
        self._table = _failed_subtests(item.config)
        self.begin(item)

    def begin(self, item: pytest.Item) -> None:
        """Go on with another test."""
        self._key = _key(item)
        self._attributes = dict(self._read_attributes())
        self._failed = self._count_failed()

    def new(self) -> dict[str, Any]:
        """Fields of a frame: what was noted since the last call."""
        new: dict[str, Any] = {}
        if self._xml is not None:
            properties = self._xml.global_properties[self._properties :]
            if properties:
                self._properties += len(properties)
                new["testsuite_properties"] = properties
            if (attributes := self._read_attributes()) != self._attributes:
                self._attributes = new["xml_attributes"] = dict(attributes)
        if (failed := self._count_failed()) != self._failed:
            self._failed = new["failed_subtests"] = failed
        return new

    def _read_attributes(self) -> Mapping[str, str]:
        """What ``record_xml_attribute`` recorded for the test."""
        reporter = self._xml.node_reporters.get((self._key, None)) if self._xml is not None else None
        return reporter.attrs if reporter is not None else {}

    def _count_failed(self) -> int:
        return self._table.get(self._key, 0) if self._table is not None else 0


def take(item: pytest.Item, frame: Mapping[str, Any]) -> None:
    """In pytest's process: note down what a frame tells."""
    if "testsuite_properties" in frame or "xml_attributes" in frame:
        xml = _junit(item.config)
        if xml is not None:
            for name, value in frame.get("testsuite_properties", ()):
                xml.global_properties.append((str(name), value))
            for name, value in frame.get("xml_attributes", {}).items():
                xml.node_reporter(_key(item)).add_attribute(name, value)
    if "failed_subtests" in frame:
        table = _failed_subtests(item.config)
        if table is not None:
            table[_key(item)] = frame["failed_subtests"]


def _key(item: pytest.Item) -> Any:
    return getattr(item, "id", item.nodeid)  # pytest >= 9.2 keys by node id


def _junit(config: pytest.Config) -> Any:
    """pytest's writer of junit.xml, or None."""
    plugin = config.pluginmanager.get_plugin("junitxml")
    return config.stash.get(plugin.xml_key, None) if plugin is not None else None


def _failed_subtests(config: pytest.Config) -> Any:
    """pytest's table of failed subtests; None before pytest 9."""
    key = getattr(config.pluginmanager.get_plugin("subtests"), "failed_subtests_key", None)
    return config.stash.get(key, None) if key is not None else None
