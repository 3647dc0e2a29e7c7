"""Programs of images, run by tests and by containers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox.images.store import Store
from tests.acceptance.comparing import Runs
from tests.acceptance.test_images import run
from tests.images import archives as a
from tests.rootfs import rootfs

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory", "debian archive")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NSBOX_ROOTFS_CACHE", str(Path.home() / ".cache/pytest-nsbox-rootfs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_test_and_its_programs_in_busybox(runs: Runs):
    text = run(
        runs,
        f"""
        import subprocess, pytest
        @pytest.mark.sandbox(rootfs={str(rootfs("busybox"))!r})
        def test_in_image():
            done = subprocess.run(["sh", "-c", "readlink /bin/sh; id -u; hostname"], capture_output=True, text=True)
            assert done.stdout.splitlines()[:2] == ["/bin/busybox", "0"]
        """,
    )
    assert "1 passed" in text


CONTAINERS = """
    import pytest
    {mark}
    def test_containers(nsbox, tmp_path):
        done = nsbox.run(["-c", "pwd; id -u; echo $GREETING; readlink /bin/ls; cat /etc/hostname"], rootfs={image!r})
        assert done.stdout.splitlines()[:4] == ["/srv/work", "7", "hello", "/bin/busybox"], done
        done = nsbox.run(["-c", "echo $GREETING"], rootfs={image!r}, env={{"GREETING": "mine"}}, user=0)
        assert done.stdout == "mine\\n"
        done = nsbox.run([], rootfs={image!r})
        assert done.stdout == "the command\\n"
        script = "rm /bin/ls; mv /srv /elsewhere; touch /new; echo 1 >> /etc/hosts"
        done = nsbox.run(["-c", script], rootfs={image!r}, user=0)
        assert ("D", "/bin/ls") in done.changes
        assert ("A", "/new") in done.changes
        assert not [path for _, path in done.changes if path.startswith("/etc")]
        kept = nsbox.image({archive!r}, "of-the-test")
        assert nsbox.run(["-c", "ls /bin/ls"], rootfs="of-the-test").returncode == 0
        assert "of-the-test:latest" in kept.names
        with pytest.raises(Exception, match="no image 'nowhere'"):
            nsbox.run(["true"], rootfs="nowhere")
"""


@pytest.mark.parametrize("mark", ["", "@pytest.mark.sandbox", "@pytest.mark.sandbox(rootfs='box')"])
def test_containers_of_an_image_with_its_config(runs: Runs, cache: Path, tmp_path: Path, mark: str):
    store = Store(str(cache / "pytest-nsbox"))
    layer = store.add(str(rootfs("busybox")), "box").layers[0]
    store.export(store.find("box"), str(tmp_path / "out"))
    (tar,) = (path for path in (tmp_path / "out/blobs/sha256").iterdir() if path.name == Path(layer).parent.name)
    config: dict[str, Any] = {
        "Entrypoint": ["sh"],
        "Cmd": ["-c", "echo the command"],
        "User": "7",
        "WorkingDir": "/srv/work",
    }
    archive = tmp_path / "saved.tar"
    archive.write_bytes(a.saved([tar.read_bytes()], tags=("app:1",), Env=["GREETING=hello"], **config))
    store.add(str(archive))
    text = run(runs, CONTAINERS.format(mark=mark, image="app:1", archive=str(archive)))
    assert "1 passed" in text, text
    assert len(os.listdir(store.path + "/layers")) == 1


@pytest.mark.slow
@pytest.mark.needs("program:mmdebstrap")
def test_a_debian_and_its_programs(runs: Runs):
    text = run(
        runs,
        f"""
        import subprocess, pytest
        @pytest.mark.sandbox(rootfs={str(rootfs("debian"))!r})
        def test_in_debian():
            done = subprocess.run(["dpkg", "-s", "bash"], capture_output=True, text=True)
            assert "Status: install ok installed" in done.stdout
        """,
    )
    # The machine's C library is another one where it is no Debian 12, and that is an error that names it.
    assert "1 passed" in text or "libc.so.6 of the image is another one" in text


@pytest.mark.slow
@pytest.mark.needs("program:mmdebstrap")
def test_a_python_of_the_images_own(runs: Runs):
    text = run(
        runs,
        f"""
        def test_container(nsbox):
            done = nsbox.run(["python3", "-c", "import sys; print(sys.prefix)"], rootfs={str(rootfs("python"))!r})
            assert done.stdout == "/usr\\n", done
        """,
    )
    assert "1 passed" in text


COMMITS = """
    import pytest

    @pytest.fixture(scope="session")
    def prepared(nsbox_session):
        with nsbox_session.start(["sh", "-c", "echo ready > /state"], rootfs="box") as box:
            box.wait()
            return box.commit("prepared").id

    @pytest.mark.parametrize("n", range(3))
    def test_starts_from_it(nsbox, prepared, n):
        assert nsbox.run(["cat", "/state"], rootfs=prepared, check=True).stdout == "ready\\n"

    def test_commits_by_itself(nsbox, nsbox_session):
        with nsbox.start(["touch", "/own"], rootfs="prepared") as box:
            box.wait()
            image = box.commit("own")
        assert len(image.layers) == 3
        assert nsbox.run(["ls", "/own", "/state"], rootfs="own", check=True)
"""


@pytest.mark.parametrize("options", [(), ("--sandbox-all",)], ids=["unboxed", "boxed"])
def test_a_fixture_commits_what_it_prepared(runs: Runs, cache: Path, options: tuple[str, ...]):
    Store(str(cache / "pytest-nsbox")).add(str(rootfs("busybox")), "box")
    text = run(runs, COMMITS, *options)
    assert "4 passed" in text, text
