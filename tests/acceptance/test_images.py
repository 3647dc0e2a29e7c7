"""Tests whose box has an image's root."""

from __future__ import annotations

import ctypes.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox.images.store import Store
from tests.acceptance.comparing import ZOO, Runs
from tests.images import archives as a
from tests.images.archives import directory, entry, tar

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

LOWER = tar(
    [
        directory("etc"),
        entry("etc/passwd", b"app:x:77:88::/:\n"),
        entry("etc/marker", b"lower"),
        entry("etc/gone", b"x"),
        entry("etc/hosts", b"image's own"),
        directory("opaque"),
        entry("opaque/old", b"x"),
    ]
)
UPPER = tar(
    [entry("etc/marker", b"upper"), entry("etc/.wh.gone"), entry("opaque/.wh..wh..opq"), entry("opaque/new", b"n")]
)
CONFIG: dict[str, Any] = {"Env": ["FROM_IMAGE=1", "PATH=/image/bin"], "WorkingDir": "/not/there/yet", "User": "app"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache directory: a store of this test's own."""
    path = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "image.tar"
    path.write_bytes(a.saved([LOWER, UPPER, tar([directory("more")]), UPPER], **CONFIG))
    return path


@pytest.mark.needs("shifted tmpfs")
def test_a_suite_runs_in_an_image_and_the_image_stays_as_it_was(runs: Runs, cache, archive, monkeypatch):
    monkeypatch.setenv("IMAGE", str(archive))
    project = runs.write({"test_image.py": ZOO / "image_tests.py"}, "project")
    done = runs.run(project, "-rfE")
    failed = [f"{r['nodeid']} in {r['when']}:\n{r['longrepr']}" for r in done.reports() if r["outcome"] == "failed"]
    assert not failed, "\n".join(failed)
    assert not (project / "stray").exists()
    (image,) = Store(str(cache / "pytest-nsbox")).images()
    assert Path(image.layers[1], "etc/marker").read_text() == "upper"


def run(runs: Runs, text: str, *options: str) -> str:
    """Run one test file with boxes; return what was printed."""
    runs.pytester.makepyfile(text)
    ours = ["-p", "nsbox", "-p", "xdist"] if "PYTEST_DISABLE_PLUGIN_AUTOLOAD" in os.environ else []
    return "\n".join(runs.pytester.runpytest_subprocess(*ours, "-p", "no:cacheprovider", "-rA", *options).outlines)


BODY = """
    import os, pytest
    @pytest.mark.sandbox(rootfs={rootfs!r}, user="0")
    @pytest.mark.parametrize("n", range(3))
    def test_in_image(n):
        assert os.path.exists("/etc/marker")
        open("/etc/other", "w").close()
"""


def test_a_directory_is_used_in_place_and_names_and_archives_from_the_store(runs: Runs, cache, archive):
    root = runs.pytester.mkdir("root")
    (root / "etc").mkdir()
    (root / "etc/marker").write_text("x")
    assert "3 passed" in run(runs, BODY.format(rootfs="./root"))
    assert sorted(path.name for path in root.rglob("*")) == ["etc", "marker"]
    assert not cache.exists()
    Store(str(cache / "pytest-nsbox")).add(str(archive), "mine")
    assert "3 passed" in run(runs, BODY.format(rootfs="mine"))
    assert "3 passed" in run(runs, BODY.format(rootfs=str(archive)), "-n2")


def test_an_image_that_is_not_there_is_an_error_of_its_tests_alone(runs: Runs, cache):
    text = run(runs, BODY.format(rootfs="nowhere") + "\n    def test_plain(): pass")
    assert "no image 'nowhere' (images: none yet; a path has '/' or '.' in front)" in text
    assert "1 passed, 3 errors" in text


def test_another_c_library_in_the_image_is_an_error_that_names_the_file(runs: Runs, cache):
    libc = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc.so" in line)
    assert ctypes.util.find_library("c")
    place = runs.pytester.path / "root" / libc.lstrip("/")
    place.parent.mkdir(parents=True)
    (runs.pytester.path / "root/etc").mkdir()
    (runs.pytester.path / "root/etc/marker").touch()
    if libc.startswith("/usr/lib/"):
        (runs.pytester.path / "root/lib").symlink_to("usr/lib")
    shutil.copy(libc, place)
    assert "3 passed" in run(runs, BODY.format(rootfs="./root"))
    place.write_bytes(place.read_bytes() + b"other")
    text = run(runs, BODY.format(rootfs="./root"))
    assert "3 errors" in text
    assert "libc.so.6 of the image is another one than this interpreter runs with" in text


def test_layers_of_a_running_box_are_not_removed(runs: Runs, cache, archive):
    store = Store(str(cache / "pytest-nsbox"))
    layers = len(os.listdir(Path(store.add(str(archive), "mine").layers[0]).parents[1]))
    text = run(
        runs,
        f"""
        import os, pytest
        @pytest.mark.sandbox(rootfs="mine", user="0")
        def test_one(): pass
        def test_remove():
            from pytest_nsbox.images.store import Store
            Store().remove("mine")
            assert len(os.listdir(Store().path + "/layers")) == {layers}
        @pytest.mark.sandbox(rootfs={str(archive)!r}, user="0")
        def test_two(): assert open("/etc/marker").read() == "upper"
        """,
    )
    assert "3 passed" in text
