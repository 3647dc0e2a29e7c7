"""The reference pages say what the code does: their tables are compared with it, name by name."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest_nsbox
from pytest_nsbox import settings
from pytest_nsbox.fixtures import Sandbox
from pytest_nsbox.policy import features, usage
from pytest_nsbox.policy.keys import KEYS
from pytest_nsbox.policy.limits import LIMITS, render_page
from pytest_nsbox.policy.spec import Layer, Spec
from tests.matrix.sections import SECTIONS

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def tables(page: str) -> dict[str, list[list[str]]]:
    """heading -> the rows (cells without backquotes in the first column) of the tables below it."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in (REFERENCE / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| `"):
            cells = re.split(r"(?<!\\) \| ", line.strip("| "))
            found.setdefault(heading, []).append([cells[0].strip("`"), *cells[1:]])
    return found


def names(rows: list[list[str]]) -> list[str]:
    return [re.split(r"[= ]", row[0])[0].removesuffix("()") for row in rows]


def test_every_marker_key_is_documented_and_none_besides():
    documented = names(tables("marker.md")["Keys"])
    assert len(documented) == len(set(documented))
    assert set(documented) == set(KEYS)


def test_every_documented_value_of_a_key_is_accepted():
    tried = 0
    for key, values, _ in tables("marker.md")["Keys"]:
        for text in re.findall(r"`([^`]*)`", values):
            if re.search(r"[A-Z]{3}|uid|^mem$", text):  # a pattern or a word, not a value
                continue
            needed: dict[str, object] = {"cpu": "50%"} if key == "cpu_period" else {}
            Spec.build([Layer({**needed, key: ast.literal_eval(text)}, "the page")], rootdir="/")
            tried += 1
    assert tried >= 12


class Recorder:
    """Stands in for pytest's parser and notes what is declared."""

    def __init__(self) -> None:
        self.options: list[str] = []
        self.ini: list[str] = []

    def getgroup(self, *args: Any, **kwargs: Any) -> Recorder:
        return self

    def addoption(self, name: str, **kwargs: Any) -> None:
        self.options.append(name)

    def addini(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.ini.append(name)


def test_every_option_and_ini_name_is_documented_and_none_besides():
    declared = Recorder()
    settings.add_options(declared)  # type: ignore[arg-type]  # it has what is used of a parser
    page = tables("options.md")
    assert sorted(names(page["Command line"])) == sorted(declared.options)
    assert sorted(names(page["Ini"])) == sorted(declared.ini)


def test_every_usage_figure_is_documented_in_order():
    assert names(tables("usage.md")["Usage figures"]) == [usage.PREFIX + name for name in usage.NAMES]


def test_every_attribute_of_the_sandbox_fixture_is_documented():
    public = {name for name in vars(Sandbox) if not name.startswith("_")} | {"spec", "name"}
    assert set(names(tables("fixtures.md")["`sandbox`"])) == public


def test_the_page_on_endings_names_every_exception():
    text = (REFERENCE / "endings.md").read_text(encoding="utf-8")
    for name in pytest_nsbox.__all__:
        if not name.startswith("_"):
            assert f"`{name}`" in text


def test_the_page_on_limits_is_what_the_table_gives():
    page = (REFERENCE / "limits.md").read_text(encoding="utf-8")
    assert page == render_page(), "python -m pytest_nsbox.policy.limits > docs/reference/limits.md"


def test_the_page_on_the_kernel_is_what_the_table_gives():
    page = (REFERENCE / "kernel.md").read_text(encoding="utf-8")
    assert page == features.render_page(), "python -m pytest_nsbox.policy.features > docs/reference/kernel.md"


def test_the_table_of_subsystems_has_the_keys_that_use_them():
    told = {key for row in features.SUBSYSTEMS for key in row.keys}
    assert {row.name for row in LIMITS if row.controller is not None} <= told <= set(KEYS)


def test_ci_runs_the_command_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.partition("<!-- the test command -->\n```console\n$ ")[2].partition("\n```")[0]
    assert "tox" in block
    assert "\n" not in block, "one line"


def test_every_known_trouble_has_a_test_or_a_row_of_the_matrix_that_exists():
    features = {row.feature for section in SECTIONS for row in section.rows}
    page = (ROOT / "docs" / "explanation" / "known-troubles.md").read_text(encoding="utf-8")
    lines = [
        line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| Trouble", "| Thing"))
    ]
    assert len(lines) > 70
    for line in lines:
        shown = line.strip("| ").rpartition(" | ")[2]
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown)
        rows = re.findall(r"matrix: (.*?)(?=; (?:matrix: |`tests/)|$)", shown)
        assert tests or rows, line
        for path, name in tests:
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {name}"
        assert set(rows) <= features, line
