"""The how-to pages that reproduce something: their code is tests/examples, and ends as the page shows."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pytest_nsbox.images.store import Store
from tests.capabilities import require
from tests.rootfs import rootfs

REPOSITORY = Path(__file__).parents[2]
PAGES = REPOSITORY / "docs" / "how-to"
EXAMPLES = REPOSITORY / "tests" / "examples"
# Now: inner runs of pytest have another home.
CACHE = os.environ.get("NSBOX_ROOTFS_CACHE") or str(Path.home() / ".cache/pytest-nsbox-rootfs")

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "cgroup:memory", "cgroup:cpu", "seccomp listener")


def block(page: Path, kind: str) -> str:
    found = re.search(rf"^```{kind}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def keep_images(code: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Have the images that an example names in a store of its own."""
    monkeypatch.setenv("NSBOX_ROOTFS_CACHE", CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    for name in sorted(set(re.findall(r'rootfs="(\w+)"', code))):
        require("debian archive")
        Store().add(str(rootfs(name)), name)


def normalised(line: str) -> str:
    """A line without what differs from machine to machine, and from run to run."""
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"[=_-]{2,}", " ", line)).strip()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("test_*.py")), ids=lambda path: path.stem)
def test_an_example_ends_as_its_page_shows(path: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    if "jvm" in path.name:
        require("runtime:java")
    page = PAGES / f"{path.stem.removeprefix('test_').replace('_', '-')}.md"
    code = path.read_text(encoding="utf-8")
    assert block(page, "python") == code
    keep_images(code, monkeypatch, pytester.path)
    command, *shown = block(page, "console").splitlines()
    assert command.startswith("$ pytest ")
    assert command.endswith(f" {path.name}")
    (pytester.path / path.name).write_text(code, encoding="utf-8")
    result = pytester.runpytest_subprocess(*command.split()[2:])
    assert result.ret == pytest.ExitCode.OK
    lines = iter(map(normalised, result.outlines))
    for expected in map(normalised, shown):
        assert expected == "..." or expected in lines, f"not in the output, or not in this place: {expected}"


def test_every_example_has_its_page():
    pages = {page.stem for page in PAGES.glob("*.md")}
    assert {path.stem.removeprefix("test_").replace("_", "-") for path in EXAMPLES.glob("test_*.py")} <= pages
