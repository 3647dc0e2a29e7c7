"""What tars become on disk: every kind of entry, in every format, as overlayfs wants it."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from pytest_nsbox.images.store import Store
from tests.images import archives as a
from tests.images.archives import directory, entry, hardlink, symlink, tar


def unpacked(store: Store, tmp_path: Path, content: bytes, name: str = "root.tar") -> Path:
    (tmp_path / name).write_bytes(content)
    image = store.add(str(tmp_path / name))
    return Path(image.layers[0])


@pytest.mark.needs("root")
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_directories_links_and_fifos_keep_mode_owner_and_time(store, tmp_path, form):
    members = [
        directory("./", 0o751),
        directory("etc", 0o711, uid=5, gid=6, mtime=1_500_000_000),
        entry("etc/shadow", b"secret", mode=0o4640, uid=7, gid=8),
        symlink("etc/link", "/etc/shadow"),
        hardlink("etc/again", "etc/shadow"),
        entry("pipe", type=tarfile.FIFOTYPE, mode=0o620, uid=9),
        entry("no/parents/here", b"x"),
    ]
    root = unpacked(store, tmp_path, tar(members, form))
    found = a.listing(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o751
    assert found["etc"][:4] == ("drwx--x--x", 5, 6, 1_500_000_000 * 10**9)
    assert found["etc/shadow"][:4] == ("-rwSr-----", 7, 8, 1_600_000_000 * 10**9)
    assert found["etc/again"] == found["etc/shadow"]
    assert (root / "etc/again").stat().st_ino == (root / "etc/shadow").stat().st_ino
    assert found["etc/link"][4] == Path("/etc/shadow")
    assert found["pipe"][:2] == ("prw--w----", 9)
    assert found["no/parents"][0] == "drwxr-xr-x"


@pytest.mark.needs("root")
def test_numbers_and_names_that_the_old_header_cannot_hold(store, tmp_path):
    long = "/".join(["d" * 200] * 15)
    members = [
        entry(f"{long}/file", b"1", uid=3_000_000, gid=4_000_000_000),
        symlink("link", "t" * 3000),
        entry("time", b"", pax_headers={"mtime": "-1.500000000"}),
        entry("näme", b"2", pax_headers={"mtime": "1600000000.123456789"}),
    ]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        found = a.listing(unpacked(store, tmp_path, tar(members, form), f"{form}.tar"))
        assert found[f"{long}/file"][1:3] == (3_000_000, 4_000_000_000)
        assert found["link"][4] == Path("t" * 3000)
        if form == tarfile.PAX_FORMAT:
            assert found["time"][3] == -1_500_000_000
            assert found["näme"][3] == 1_600_000_000_123_456_789


def test_names_that_are_no_text_stay_as_they_are(store, tmp_path):
    root = unpacked(store, tmp_path, tar([entry(os.fsdecode(b"caf\xe9"), b"x")], tarfile.GNU_FORMAT))
    assert os.listdir(os.fsencode(root)) == [b"caf\xe9"]


@pytest.mark.needs("root")
def test_extended_attributes_are_kept_but_those_that_the_kernel_would_obey(store, tmp_path):
    kept = {"SCHILY.xattr.user.note": "hello"}
    capability = {"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00" + "\0" * 8}
    refused = {
        f"SCHILY.xattr.{name}": value
        for name, value in (("trusted.overlay.redirect", "/etc"), ("user.overlay.opaque", "y"), ("trusted.x", "1"))
    }
    members = [entry("f", b"x", pax_headers={**kept, **capability, **refused}), directory("d", pax_headers=refused)]
    found = a.listing(unpacked(store, tmp_path, tar(members)))
    assert [name for name, _ in found["f"][5]] == ["security.capability", "user.note"]
    assert found["d"][5] == ()


@pytest.mark.needs("root")
def test_whiteouts_and_opaque_directories_take_the_form_that_overlayfs_reads(store, tmp_path):
    members = [
        directory("etc"),
        entry("etc/.wh.gone"),
        directory("opt"),
        entry("opt/.wh..wh..opq"),
        entry("opt/new", b"n"),
        entry(".wh..wh.plnk"),
        entry("etc/.wh.both"),
        entry("etc/both", b"b"),
    ]
    root = unpacked(store, tmp_path, tar(members))
    gone = (root / "etc/gone").lstat()
    assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev) == (True, 0)
    assert os.getxattr(root / "opt", "trusted.overlay.opaque") == b"y"
    assert sorted(os.listdir(root)) == ["etc", "opt"]
    assert (root / "etc/both").read_bytes() == b"b"


@pytest.mark.parametrize("form", ["gnu", "pax", "0.0", "0.1", "1.0"])
def test_sparse_files_of_every_format_get_their_holes_back(store, tmp_path, form):
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        for offset in (0, 300_000, 2_000_000):
            file.seek(offset)
            file.write(b"data" * 1000)
        file.truncate(5_000_000)
    form_option = "--format=gnu" if form == "gnu" else "--format=pax"
    version = [f"--sparse-version={form}"] if "." in form else []
    subprocess.run(
        ["tar", "-C", tmp_path, form_option, *version, "-S", "-cf", tmp_path / "s.tar", "sparse"], check=True
    )
    assert (tmp_path / "s.tar").stat().st_size < 100_000
    root = unpacked(store, tmp_path, (tmp_path / "s.tar").read_bytes())
    assert (root / "sparse").read_bytes() == source.read_bytes()
    assert (root / "sparse").stat().st_blocks * 512 < 1_000_000


def test_long_runs_of_zeros_take_no_space(store, tmp_path):
    content = b"begin" + bytes(3 << 20) + b"middle" + bytes(200_000)
    root = unpacked(store, tmp_path, tar([entry("f", content), entry("empty", bytes(1 << 20))]))
    assert (root / "f").read_bytes() == content
    assert (root / "f").stat().st_blocks * 512 < 600_000
    assert (root / "empty").stat().st_size == 1 << 20


def test_a_later_entry_replaces_an_earlier_one_and_the_archive_still_comes_back(store, tmp_path):
    members = [
        entry("f", b"first"),
        entry("f", b"second"),
        symlink("d", "elsewhere"),
        directory("d"),
        entry("d/x", b"1"),
        hardlink("h", "f"),
        entry("f", b"third"),
    ]
    content = tar(members)
    root = unpacked(store, tmp_path, content)
    assert (root / "f").read_bytes() == b"third"
    assert (root / "h").read_bytes() == b"second"
    assert (root / "d/x").read_bytes() == b"1"
    (image,) = store.images()
    store.export(image, str(tmp_path / "out"))
    assert (tmp_path / "out/blobs/sha256" / a.digest(content)).read_bytes() == content


def test_links_inside_a_layer_lead_to_its_own_directories_only(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    members = [
        directory("usr"),
        directory("usr/lib"),
        symlink("lib", "usr/lib"),
        entry("lib/a", b"a"),
        symlink("abs", "/usr/lib"),
        entry("abs/b", b"b"),
        symlink("up", "../../../../../../../../usr/lib"),
        entry("up/c", b"c"),
    ]
    root = unpacked(store, tmp_path, tar(members))
    assert sorted(os.listdir(root / "usr/lib")) == ["a", "b", "c"]
    assert list(outside.iterdir()) == []


def test_a_directory_imported_looks_the_same(store, tmp_path):
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/file").write_bytes(b"x" * 5000)
    os.link(source / "a/file", source / "a/hard")
    (source / "a/soft").symlink_to("../nowhere")
    (source / ("n" * 250)).write_text("long")
    os.mkfifo(source / "fifo")
    os.setxattr(source / "a/file", "user.note", b"\x00\xff")
    os.utime(source / "a/file", ns=(1, 1_234_567_890_123_456_789))
    os.utime(source / "a", ns=(1, 42))
    with (source / "sparse").open("wb") as file:
        file.truncate(10 << 20)
    image = store.add(str(source), "dir")
    assert a.listing(image.layers[0]) == a.listing(source)
    layer = Path(image.layers[0])
    assert (layer / "a/file").stat().st_nlink == 2
    assert (layer / "sparse").stat().st_blocks == 0
    assert store.add(str(source)).id == image.id
