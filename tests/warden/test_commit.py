"""A box's root kept as an image: what goes into the layer, and boxes that are started from it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox import BoxFailed
from pytest_nsbox.images.store import Store
from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.warden.client import Warden
from tests.rootfs import rootfs
from tests.warden.boxes import started

pytestmark = [pytest.mark.needs("root", "overlay", "user namespace", "busybox root"), pytest.mark.keeps_running]
# Ten seconds each in the virtual machine, and nothing that the other does not show of its kernel.
in_vm_slow = pytest.mark.slow


@pytest.fixture
def boxes(warden: Warden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NsBox]:
    """Containers, and a store of this test's own with the image `base`."""
    root = tmp_path / "root"
    shutil.copytree(rootfs("busybox"), root, symlinks=True)
    for name in ("keep", "gone", "replaced/old", "renamed/inside"):
        path = root / "srv" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = NsBox(warden.connect, str(tmp_path))
    made.image(root, "base")
    yield made
    made.close()


def test_what_was_added_changed_and_deleted_is_in_the_image(boxes: NsBox):
    script = """
        set -e
        cd /srv
        echo changed > keep; rm gone; rm -r replaced; mkdir replaced; echo new > replaced/new; mv renamed moved
        mkdir -m 1770 /own; echo mine > /own/file; chown -R 77:88 /own; chmod 4755 /own/file; ln /own/file /own/link
        ln -s /srv/keep /own/symlink; mkfifo /own/fifo
    """
    with boxes.start(["sleep", "60"], rootfs="base") as box:
        box.exec(["sh", "-c", script], check=True)
        image = box.commit("made:1")
        assert image.names == ("made:1",)
        assert len(image.layers) == 2
        assert box.status == "running"
    shown = "cd /srv; cat keep; ls; ls replaced moved; stat -c '%n %a %u:%g %h' /own /own/file; readlink /own/symlink"
    found = boxes.run(["sh", "-c", shown], rootfs="made:1", check=True).stdout
    assert found.split("\n")[:-1] == [
        *("changed", "keep", "moved", "replaced"),
        *("moved:", "inside", "", "replaced:", "new"),
        *("/own 1770 77:88 2", "/own/file 4755 77:88 2", "/srv/keep"),
    ]
    layer = Path(image.layers[1])
    # As the image's users see it, without the shift of the box.
    assert (layer / "srv/keep").stat().st_uid == 0
    assert not (layer / "dev").exists()
    assert boxes.run(["cat", "/srv/gone"], rootfs="base", check=True).stdout == "gone"


@in_vm_slow
def test_mounts_and_the_init_layer_stay_out(boxes: NsBox, tmp_path: Path):
    (tmp_path / "bound").mkdir()
    mounts: dict[str, Any] = {
        "volumes": ["data:/data/deep", f"{tmp_path}/bound:/bound", "only:/new/only"],
        "tmpfs": ["/scratch"],
    }
    script = "for d in /data /data/deep /bound /new/only /scratch /dev /home/app; do echo x > $d/file; done; "
    with boxes.start(
        ["sh", "-c", script + "echo x >> /etc/hosts; echo x > /etc/other"], rootfs="base", workdir="/home/app", **mounts
    ) as box:
        assert box.wait() == 0
        image = box.commit()
    layer = Path(image.layers[-1])
    files = sorted(str(path.relative_to(layer)) for path in layer.rglob("*") if not path.is_dir())
    assert files == ["data/file", "etc/other", "home/app/file"]
    assert sorted(path.name for path in layer.iterdir()) == ["data", "etc", "home"]
    assert list((layer / "data").iterdir()) == [layer / "data/file"]


@in_vm_slow
def test_the_config_is_that_of_the_box(boxes: NsBox):
    with boxes.start(["sleep", "60"], rootfs="base", env={"A": "1"}, workdir="/srv", user=7) as box:
        config = box.commit("configured").config
    assert (config.cmd, config.workdir, config.user) == (("sleep", "60"), "/srv", "7")
    result = boxes.run(["sh", "-c", "echo $A; pwd; id -u"], rootfs="configured")
    assert result.stdout.split() == ["1", "/srv", "7"]
    with boxes.start([], rootfs="configured") as again:
        assert again.inspect()["Args"] == ["sleep", "60"]
        # What runs in a box later has its environment as well.
        assert again.exec(["sh", "-c", "echo $A; pwd; id -u"]).stdout.split() == ["1", "/srv", "7"]


@in_vm_slow
def test_nobody_writes_meanwhile_and_a_paused_box_stays_paused(boxes: NsBox):
    script = "while :; do echo x >> /one; echo x >> /two; done"
    with boxes.start(["sh", "-c", script], rootfs="base") as box:
        while box.exec(["test", "-s", "/two"]).returncode != 0:
            time.sleep(0.01)
        layer = Path(box.commit().layers[-1])
        assert (layer / "one").stat().st_size - (layer / "two").stat().st_size in (0, 2)
        assert box.status == "running"
        box.pause()
        box.commit()
        assert box.status == "paused"
        box.resume()


@in_vm_slow
def test_a_chain_of_commits(boxes: NsBox):
    name = "base"
    for number in range(3):
        with boxes.start(["sh", "-c", f"echo {number} >> /log; rm -f /layer{number - 1}; touch /layer{number}"],
                         rootfs=name) as box:  # fmt: skip
            assert box.wait() == 0
            name = f"step{number}"
            image = box.commit(name)
    assert len(image.layers) == 4
    assert boxes.run(["sh", "-c", "cat /log; ls /"], rootfs=name).stdout.split()[:3] == ["0", "1", "2"]
    assert "layer0" not in boxes.run(["ls", "/"], rootfs=name).stdout


@in_vm_slow
def test_twenty_boxes_from_a_commit(boxes: NsBox):
    with boxes.start(["sh", "-c", "echo prepared > /state"], rootfs="base") as box:
        box.wait()
        box.commit("prepared")
    started = [
        boxes.start(["sh", "-c", f"cat /state; echo {n} > /state; cat /state"], rootfs="prepared") for n in range(20)
    ]
    assert [box.wait(20) for box in started] == [0] * 20
    assert [box.logs() for box in started] == [f"prepared\n{n}\n" for n in range(20)]


@in_vm_slow
def test_a_box_with_a_directory_or_the_host_for_a_root(boxes: NsBox, tmp_path: Path):
    with boxes.start(["touch", "/new"], rootfs="./root") as box:
        box.wait()
        assert len(box.commit("from-directory").layers) == 2
    assert not (tmp_path / "root/new").exists()
    assert boxes.run(["ls", "/new"], rootfs="from-directory").returncode == 0
    with boxes.start(["touch", "/nsbox-new"]) as box:
        box.wait()
        (layer,) = box.commit().layers
    assert os.listdir(layer) == ["nsbox-new"]


@in_vm_slow
def test_sockets_that_boxes_begin_without_are_no_part_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    left = tmp_path / "left"
    left.mkdir()
    for name in ("stale", "made-anew"):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(left / name))
    with started(tmpdir=str(left)) as warden:
        made = NsBox(warden.connect, "/")
        with made.start(["touch", str(left / "made-anew")]) as box:
            box.wait()
            (layer,) = box.commit().layers
        made.close()
    assert [path.name for path in Path(layer).rglob("*") if not path.is_dir()] == ["made-anew"]


@in_vm_slow
def test_what_cannot_be_committed_is_told(boxes: NsBox):
    with (
        boxes.start(["true"], rootfs="base") as box,
        pytest.raises(BoxFailed, match=r"'a b' is no name of an image \(accepted: letters"),
    ):
        box.commit("a b")
    with pytest.raises(BoxFailed, match=f"the box '{box.name}' was removed"):
        box.commit("late")
    with boxes.start(["touch", "/.wh.odd"], rootfs="base") as box:
        box.wait()
        with pytest.raises(BoxFailed, match=r"no layer can hold a name that begins with '\.wh\.'"):
            box.commit("odd")
    assert not any("odd" in name for name in Store().names())


@in_vm_slow
class TestNewVolumes:
    """A new named volume takes over what the image has at its place, as in Docker."""

    @pytest.fixture
    def image(self, boxes: NsBox, tmp_path: Path) -> str:
        data = tmp_path / "root/data"
        (data / "sub").mkdir(parents=True)
        (data / "file").write_text("text")
        os.chown(data / "file", 77, 88)
        (data / "file").chmod(0o4711)
        os.setxattr(data / "file", "user.told", b"yes")
        os.link(data / "file", data / "sub/link")
        (data / "symlink").symlink_to("/etc/hosts")
        os.chown(data / "symlink", 5, 6, follow_symlinks=False)
        os.mkfifo(data / "fifo")
        with open(data / "sparse", "wb") as file:
            file.truncate(100 << 20)
            file.seek(50 << 20)
            file.write(b"middle")
        os.utime(data / "file", (1000, 1000))
        data.chmod(0o1750)
        os.chown(data, 7, 8)
        (tmp_path / "root/way").symlink_to("data/sub")
        boxes.image(tmp_path / "root", "with-data")
        return "with-data"

    def test_it_takes_over_what_the_image_has_at_its_place(self, boxes: NsBox, image: str):
        shown = "cd $0; stat -c '%n %a %u:%g %h %F %Y' . file symlink fifo; stat -c '%s %b' sparse; cat file"
        plain = boxes.run(["sh", "-c", shown, "/data"], rootfs=image, check=True).stdout.split("\n")
        boxes.volume("taken")
        taken = boxes.run(["sh", "-c", shown, "/data"], rootfs=image, volumes=["taken:/data"], check=True)
        assert taken.stdout.split("\n") == plain
        assert "file 4711 77:88 2 regular file 1000" in plain
        size, blocks = (int(number) for number in plain[4].split())
        assert (size, blocks < 1000) == (100 << 20, True)
        tell = "import os; print(os.getxattr('/mnt/file', 'user.told'), os.path.samefile('/mnt/file', '/mnt/sub/link'))"
        assert boxes.run([sys.executable, "-c", tell], volumes=["taken:/mnt"]).stdout == "b'yes' True\n"

    def test_only_a_new_one(self, boxes: NsBox, image: str):
        volume = boxes.volume("used")
        boxes.run(["sh", "-c", "rm -r /data/*"], rootfs=image, volumes=["used:/data"], check=True)
        assert boxes.run(["ls", "/data"], rootfs=image, volumes=["used:/data"], check=True).stdout == ""
        volume.remove()
        boxes.volume("used")
        assert "file" in boxes.run(["ls", "/data"], rootfs=image, volumes=["used:/data:ro"], check=True).stdout
        boxes.run(["touch", "/other/mine"], volumes=["mine:/other"], check=True)
        assert boxes.run(["ls", "/data"], rootfs=image, volumes=["mine:/data"], check=True).stdout == "mine\n"
        assert boxes.run(["ls", "/none"], rootfs=image, volumes=["empty:/none"], check=True).stdout == ""

    def test_a_link_in_the_image_is_followed_inside_of_it(self, boxes: NsBox, image: str):
        assert boxes.run(["ls", "/way"], rootfs=image, volumes=["linked:/way"], check=True).stdout == "link\n"
