"""The store: what it finds, keeps, gives back and removes, also when several processes use it and one is killed."""

from __future__ import annotations

import bz2
import fcntl
import gzip
import json
import lzma
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox.images.store import Store, default_path
from pytest_nsbox.policy.errors import ImageError
from pytest_nsbox.policy.image import ImageConfig
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden import roots
from tests.images import archives as a
from tests.images.archives import directory, entry, hardlink, symlink, tar

LOWER = tar([directory("etc"), entry("etc/old", b"old"), hardlink("etc/hard", "etc/old"), symlink("lib", "usr/lib")])
UPPER = tar(
    [directory("etc", uid=3), entry("etc/.wh.old"), entry("etc/new", b"new"), directory("o"), entry("o/.wh..wh..opq")]
)
CONFIG: dict[str, Any] = {
    "Env": ["PATH=/bin", "A=b=c"],
    "Cmd": ["sh"],
    "Entrypoint": ["/init"],
    "WorkingDir": "/etc",
    "User": "7",
}


def save(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.fixture
def kept(store, tmp_path):
    """An image of two layers, named thing:1."""
    return store.add(save(tmp_path / "thing.tar", a.saved([LOWER, UPPER], **CONFIG)))


def test_an_image_of_docker_save_has_its_layers_config_and_name(store, kept):
    assert kept.names == ("thing:1",)
    assert [Path(layer).parent.name for layer in kept.layers] == [a.digest(LOWER), a.digest(UPPER)]
    assert kept.id == f"sha256:{a.digest(a.config([LOWER, UPPER], **CONFIG))}"
    assert kept.config == ImageConfig(
        env=(("PATH", "/bin"), ("A", "b=c")), cmd=("sh",), entrypoint=("/init",), workdir="/etc", user="7"
    )
    assert kept.size == 6


def test_an_image_is_found_by_name_id_and_path(store, kept, tmp_path):
    for wanted in ("thing:1", kept.id, kept.id.removeprefix("sha256:"), kept.id[7:19], "thing.tar", "./thing.tar"):
        assert store.find(wanted, str(tmp_path)) == kept
    with pytest.raises(ImageError) as caught:
        store.find("other")
    assert str(caught.value) == "no image 'other' (images: thing:1; a path has '/' or '.' in front)"
    with pytest.raises(ImageError, match=r"/nowhere: there is no such file or directory"):
        store.find("/nowhere")


def test_a_directory_is_used_where_it_is(store, tmp_path):
    (tmp_path / "root").mkdir()
    image = store.find("./root", str(tmp_path))
    assert (image.id, image.layers) == ("", (str(tmp_path / "root"),))
    assert not os.path.exists(store.path)


@pytest.mark.parametrize(
    ("make", "form"),
    [(bytes, "old"), (gzip.compress, "old"), (lzma.compress, "oci"), (bz2.compress, "oci"), (bytes, "oci")],
)
def test_every_form_of_archive_gives_the_same_image(kept, tmp_path, make, form):
    other = Store(str(tmp_path / "other"))
    if form == "old":
        content = a.saved([LOWER, UPPER], **CONFIG)
    else:
        layout = a.oci_layout(tmp_path / "layout", [LOWER, UPPER], [gzip.compress(LOWER), UPPER], **CONFIG)
        files = sorted(path for path in layout.rglob("*") if path.is_file())
        content = tar([entry(str(path.relative_to(layout)), path.read_bytes()) for path in files])
        assert other.add(str(layout)).id == kept.id
    image = other.add(save(tmp_path / "again.tar", make(content)))
    assert image.id == kept.id
    assert [a.listing(layer) for layer in image.layers] == [a.listing(layer) for layer in kept.layers]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python reads zstd")
def test_zstd_is_told_to_need_a_newer_python(store, tmp_path):
    with pytest.raises(ImageError, match=r"compressed with zstd, which Python can read since 3\.14"):
        store.add(save(tmp_path / "x.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(600)))


@pytest.mark.skipif(sys.version_info < (3, 14), reason="zstd is in the standard library since 3.14")
def test_zstd_is_read(kept, tmp_path):
    from importlib import import_module

    compressed = import_module("compression.zstd").compress(a.saved([LOWER, UPPER], **CONFIG))
    assert Store(str(tmp_path / "other")).add(save(tmp_path / "x.tar.zst", compressed)).id == kept.id


def test_layers_that_docker_saved_as_links_are_found(store, tmp_path):
    image = store.add(save(tmp_path / "x.tar", a.saved([LOWER, LOWER], link=True)))
    assert image.layers[0] == image.layers[1]


def test_of_several_images_one_must_be_named(store, tmp_path):
    layer = tar([entry("f")])
    manifest = [{"Config": "c.json", "RepoTags": [tag], "Layers": ["l.tar"]} for tag in ("one:1", "two:2")]
    members = [entry("l.tar", layer), entry("c.json", a.config([layer]))]
    path = save(tmp_path / "x.tar", tar([entry("manifest.json", json.dumps(manifest).encode()), *members]))
    with pytest.raises(ImageError, match=r"2 images in it; say which with .*x\.tar:NAME \(images: 'one:1', 'two:2'\)"):
        store.add(path)
    assert store.add(f"{path}:two:2").names == ("two:2",)
    with pytest.raises(ImageError, match="no image 'three' in it"):
        store.find(f"{path}:three")


def test_an_index_of_platforms_gives_the_one_of_this_machine(store, tmp_path):
    layout = a.oci_layout(tmp_path / "l", [LOWER])
    index = json.loads((layout / "index.json").read_text())
    (ours,) = index["manifests"]
    machine = {"os": "linux", "architecture": store.document(store.add(str(layout)))["architecture"]}
    foreign = {**ours, "digest": f"sha256:{0:064x}", "platform": {"os": "linux", "architecture": "z80"}}
    (layout / "index.json").write_text(json.dumps({"manifests": [foreign, {**ours, "platform": machine}]}))
    assert len(store.add(str(layout)).layers) == 1
    (layout / "index.json").write_text(json.dumps({"manifests": [foreign]}))
    with pytest.raises(ImageError, match="no image for linux/"):
        store.add(str(layout))


def test_a_second_use_copies_nothing(store, kept, tmp_path):
    times = {path: path.lstat().st_mtime_ns for path in Path(store.path).rglob("*")}
    began = time.process_time()
    assert store.find("./thing.tar", str(tmp_path)) == kept
    assert time.process_time() - began < 0.1
    assert {path: path.lstat().st_mtime_ns for path in Path(store.path).rglob("*")} == times


def test_a_changed_archive_is_imported_again(store, kept, tmp_path):
    save(tmp_path / "thing.tar", a.saved([UPPER]))
    assert store.find("./thing.tar", str(tmp_path)).id != kept.id


def test_an_exported_image_comes_back_identical(store, kept, tmp_path):
    store.export(kept, str(tmp_path / "out"))
    other = Store(str(tmp_path / "other"))
    back = other.add(str(tmp_path / "out"))
    assert (back.id, back.names, back.config) == (kept.id, kept.names, kept.config)
    assert [a.listing(layer) for layer in back.layers] == [a.listing(layer) for layer in kept.layers]
    for layer in (LOWER, UPPER):
        assert (tmp_path / "out/blobs/sha256" / a.digest(layer)).read_bytes() == layer
    with pytest.raises(ImageError, match=r"out: not empty"):
        store.export(kept, str(tmp_path / "out"))


@pytest.mark.needs("root", "program:skopeo", "program:umoci")
def test_skopeo_and_umoci_read_what_was_exported(store, kept, tmp_path):
    out = tmp_path / "out"
    store.export(kept, str(out), "thing:1")
    shown = subprocess.run(["skopeo", "inspect", f"oci:{out}"], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["Layers"] == [f"sha256:{a.digest(layer)}" for layer in (LOWER, UPPER)]
    subprocess.run(["umoci", "unpack", "--image", f"{out}:1", tmp_path / "bundle"], capture_output=True, check=True)
    root = tmp_path / "bundle/rootfs"
    assert sorted(os.listdir(root / "etc")) == ["hard", "new"]
    assert (root / "etc").stat().st_uid == 3
    for kind in ("docker-archive", "oci-archive"):
        archive = tmp_path / f"{kind}.tar"
        subprocess.run(
            ["skopeo", "copy", "--insecure-policy", f"oci:{out}", f"{kind}:{archive}:a/b:2"],
            capture_output=True,
            check=True,
        )
        assert Store(str(tmp_path / kind)).add(str(archive)).id == kept.id


def test_a_file_changed_in_the_store_is_not_exported_in_silence(store, kept, tmp_path):
    Path(kept.layers[0], "etc/hard").write_bytes(b"xyz")
    with pytest.raises(ImageError, match="was changed in the store: import the image again"):
        store.export(kept, str(tmp_path / "out"))


def upper_of(path: Path) -> tuple[Path, Path]:
    """An overlay's upper directory as a box leaves it, and the merged view of it."""
    upper, merged = path / "upper", path / "merged"
    (upper / "etc").mkdir(parents=True)
    (upper / "etc/new").write_text("new")
    os.chown(upper / "etc/new", 4_294_900_000, 5)
    os.mknod(upper / "etc/gone", stat.S_IFCHR, os.makedev(0, 0))
    (upper / "fresh").mkdir()
    os.setxattr(upper / "fresh", "trusted.overlay.opaque", b"y")
    (upper / "moved").mkdir()
    os.setxattr(upper / "moved", "trusted.overlay.redirect", b"/was")
    (upper / "tmp/mine").mkdir(parents=True)
    (upper / "tmp/mine/file").write_text("left out")
    (merged / "moved/deep").mkdir(parents=True)
    (merged / "moved/deep/file").write_text("from below")
    return upper, merged


@pytest.mark.needs("root")
def test_a_commit_is_a_layer_of_what_changed(store, kept, tmp_path):
    upper, merged = (os.open(path, os.O_RDONLY) for path in upper_of(tmp_path))
    options = {"merged": merged, "root_id": 4_294_900_000, "leave_out": ["/tmp/mine"]}
    image = store.commit(kept, upper, name="mine", **options)
    config = ImageConfig(cmd=("true",))
    assert store.commit(kept, upper, config=config, **options).config == config
    os.close(upper)
    os.close(merged)
    assert image.names == ("mine:latest",)
    assert image.layers[:2] == kept.layers
    assert image.config == kept.config
    root = Path(image.layers[2])
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == [
        *("etc", "etc/gone", "etc/new", "fresh", "moved", "moved/deep", "moved/deep/file"),
    ]
    assert ((root / "etc/new").stat().st_uid, (root / "etc/new").stat().st_gid) == (0, 5)
    assert stat.S_ISCHR((root / "etc/gone").stat().st_mode)
    assert os.getxattr(root / "fresh", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(root / "moved", "trusted.overlay.opaque") == b"y"
    store.export(image, str(tmp_path / "out"))
    assert Store(str(tmp_path / "other")).add(str(tmp_path / "out")).id == image.id


def test_names_are_as_in_docker(store, kept, tmp_path):
    path = str(tmp_path / "thing.tar")
    assert store.add(path, "docker.io/library/mine").names == ("mine:latest", "thing:1")
    assert store.add(path, "host:5000/a/b:2").names == ("host:5000/a/b:2", "mine:latest", "thing:1")
    for wrong in ("", "a b", "-x", "../up", "abcdef012345", "a:b:c:d/e"):
        with pytest.raises(ImageError, match="is no name of an image"):
            store.add(path, wrong)


def test_the_last_name_takes_the_image_and_the_layers_that_no_other_has(store, kept, tmp_path):
    store.add(str(tmp_path / "thing.tar"), "second")
    other = store.add(save(tmp_path / "o.tar", a.saved([LOWER], tags=("other:1",))))
    store.remove("thing:1")
    assert [image.names for image in store.images()] == [("other:1",), ("second:latest",)]
    store.remove("second")
    assert os.listdir(f"{store.path}/layers") == [a.digest(LOWER)]
    store.remove(other.id)
    assert store.images() == []
    assert os.listdir(f"{store.path}/layers") == os.listdir(f"{store.path}/new") == []
    with pytest.raises(ImageError, match=r"no image 'second' \(images: none\)"):
        store.remove("second")


def test_a_layer_in_use_stays_until_it_is_not(store, kept):
    fd = os.open(kept.layers[0], os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    store.remove(kept.id)
    assert os.listdir(f"{store.path}/layers") == [a.digest(LOWER)]
    os.close(fd)
    store.sweep()
    assert os.listdir(f"{store.path}/layers") == []


IMPORT = """
import sys
from pytest_nsbox.images.store import Store
print(Store(sys.argv[1]).add(sys.argv[2], sys.argv[3]).id)
"""


def test_processes_that_import_the_same_at_once_share_one_copy(store, tmp_path):
    path = save(tmp_path / "x.tar", a.saved([tar([entry(f"f{n}", b"x" * 9000) for n in range(300)]), LOWER]))
    commands = [[sys.executable, "-c", IMPORT, store.path, path, f"name{n}"] for n in range(4)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    ids = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert len(ids) == 1
    (image,) = store.images()
    assert image.names == ("name0:latest", "name1:latest", "name2:latest", "name3:latest", "thing:1")
    assert os.listdir(f"{store.path}/new") == []


KILLED = """
import os, signal, sys
def kill(event, arguments):
    if event == "open" and str(arguments[0]).strip("'").endswith("f50"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
"""


def test_an_import_that_was_killed_leaves_nothing_that_counts(store, tmp_path):
    path = save(tmp_path / "x.tar", a.saved([tar([entry(f"f{n}", b"x" * 9000) for n in range(100)])]))
    done = subprocess.run([sys.executable, "-c", KILLED + IMPORT, store.path, path, "x"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(Path(store.path).glob("new/*/fs/f1*"))
    assert os.listdir(f"{store.path}/layers") == []
    assert os.listdir(f"{store.path}/new") != []
    store.sweep()
    assert os.listdir(f"{store.path}/new") == []
    assert len(os.listdir(store.add(path).layers[0])) == 100


def test_the_store_lies_in_the_users_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/mine")
    assert default_path() == "/var/cache/mine/pytest-nsbox"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        monkeypatch.setenv("HOME", "/home/me")
        assert default_path() == "/home/me/.cache/pytest-nsbox"


def test_a_root_is_looked_up_again_when_the_store_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()

    def layers(rootfs: str) -> object:
        return roots.resolve(Spec(rootfs=rootfs), str(tmp_path))[1][0]

    one, two = (Store().add(str(tmp_path / name), name).layers for name in ("one", "two"))
    assert layers("one") == layers("one") == one
    Store().add(str(tmp_path / "two"), "one")
    assert layers("one") == two
    assert layers("./one") == (str(tmp_path / "one"),)
    Store().remove("one")
    assert layers("one") == (str(tmp_path / "one"),)
