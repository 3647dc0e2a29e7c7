"""Every visible change brings a fragment: docs/changelog.d/<topic>.<kind>.md, full sentences for users."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAGMENTS = ROOT / "docs" / "changelog.d"
KINDS = {"added", "changed", "deprecated", "removed", "fixed", "security"}


def fragments() -> list[Path]:
    return sorted(path for path in FRAGMENTS.iterdir() if path.name != "README.md")


def test_the_changelog_says_where_unreleased_changes_are():
    assert "docs/changelog.d" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", fragments(), ids=lambda path: path.name)
def test_a_fragment_is_a_full_sentence_of_a_known_kind(path: Path):
    topic, kind, suffix = path.name.split(".")
    assert topic
    assert kind in KINDS
    assert suffix == "md"
    text = path.read_text(encoding="utf-8").strip()
    assert "\n\n" not in text, "one paragraph"
    assert text[0].isupper() or text[0] == "`"
    assert text.endswith(".")
