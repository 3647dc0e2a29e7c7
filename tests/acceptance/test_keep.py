"""``--sandbox-keep``: what failed tests changed outlives their boxes, the session and the next one's sweep."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.comparing import Recorded, Runs

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

SUITE: dict[str, str | Path] = {
    "test_keep.py": """
        import os
        import time
        import pytest

        def test_passes():
            open("/tmp/of-one-that-passed", "w").close()

        def test_fails():
            os.makedirs("/opt/new/directory")
            os.symlink("/etc/passwd", "/opt/new/link")
            os.mkfifo("/opt/new/fifo")
            with open("/opt/new/private", "w") as file:
                file.write("secret")
            os.chmod("/opt/new/private", 0o640)
            with open("/etc/hostname", "a") as file:
                file.write("more")
            os.unlink("/etc/passwd")
            assert 0

        def test_dies():
            open("/tmp/of-one-that-died", "w").close()
            os._exit(3)

        @pytest.mark.sandbox(timeout=1.5, artifacts=["/tmp/of-*"])
        def test_takes_too_long():
            open("/tmp/of-a-slow-one", "w").close()
            time.sleep(60)

        @pytest.fixture
        def fails_late():
            yield
            assert 0

        @pytest.mark.sandbox(disk="8M")
        def test_fails_in_teardown(fails_late):
            open("/tmp/of-the-teardown", "w").close()

        @pytest.mark.xfail
        def test_fails_as_expected():
            open("/tmp/of-an-expected-one", "w").close()
            assert 0

        @pytest.mark.sandbox(scope="module")
        def test_fails_in_a_group():
            open("/tmp/of-a-group", "w").close()
            assert 0

        @pytest.mark.sandbox(scope="module")
        def test_goes_on():
            open("/tmp/of-the-next", "w").close()
            assert os.path.exists("/tmp/of-a-group")
    """
}


@pytest.fixture
def kept(runs: Runs) -> Iterator[tuple[Recorded, dict[str, Path]]]:
    """A run, and where it says that the files of each failed test are."""
    boxed = runs.run(runs.write(SUITE, "boxed"), "--sandbox-keep")
    found = re.findall(r"^test_keep\.py::(\w+): (/.*)$", boxed.result.stdout.str(), re.MULTILINE)
    yield boxed, {name: Path(path) for name, path in found}
    for _, path in found:
        shutil.rmtree(Path(path).parent, ignore_errors=True)


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def test_what_failed_tests_changed_is_kept_and_named(runs: Runs, kept: tuple[Recorded, dict[str, Path]]):
    boxed, places = kept
    boxed.result.assert_outcomes(passed=3, failed=4, errors=1, xfailed=1)
    failed = {"test_fails", "test_dies", "test_takes_too_long", "test_fails_in_teardown", "test_fails_in_a_group"}
    assert places.keys() == failed
    assert len({path.parent for path in places.values()}) == 1
    # A session later they are there yet.
    runs.run(runs.write({"test_a.py": "def test_a(): pass"}, "next"))

    of_fails = places["test_fails"]
    root = of_fails / "root"
    assert files(of_fails) == ["changes.txt", "root/etc/hostname", "root/opt/new/link", "root/opt/new/private"]
    assert (root / "opt/new/directory").is_dir()
    assert (root / "opt/new/private").read_text() == "secret"
    assert stat.S_IMODE((root / "opt/new/private").stat().st_mode) == 0o640
    assert (root / "etc/hostname").read_text() == Path("/etc/hostname").read_text() + "more"
    assert os.readlink(root / "opt/new/link") == "/etc/passwd"
    changes = (of_fails / "changes.txt").read_text().splitlines()
    assert {"C /etc/hostname", "D /etc/passwd", "A /opt/new/fifo", "A /opt/new/private"} <= set(changes)
    assert stat.S_IMODE(of_fails.parent.stat().st_mode) == 0o700

    others = {name: files(path / "root") for name, path in places.items() if name != "test_fails"}
    assert others == {
        "test_dies": ["tmp/of-one-that-died"],
        "test_takes_too_long": ["tmp/of-a-slow-one"],
        "test_fails_in_teardown": ["tmp/of-the-teardown"],
        "test_fails_in_a_group": ["tmp/of-a-group"],
    }
    assert files(boxed.path / "sandbox-artifacts") == ["test_keep.py::test_takes_too_long/tmp/of-a-slow-one"]


def test_nothing_is_kept_of_a_run_without_failures(runs: Runs):
    boxed = runs.run(runs.write({"test_a.py": "def test_a(): open('/tmp/a', 'w')"}, "boxed"), "--sandbox-keep")
    boxed.result.assert_outcomes(passed=1)
    assert "failed tests" not in boxed.result.stdout.str()
