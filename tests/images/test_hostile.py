"""Archives made to do harm: each is refused with a text that names the entry, or harmless."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tarfile
from pathlib import Path

import pytest

from pytest_nsbox.images import streams
from pytest_nsbox.images.store import Store
from pytest_nsbox.policy.errors import ImageError
from tests.images import archives as a
from tests.images.archives import device, directory, entry, hardlink, symlink, tar


def add(store: Store, tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "evil.tar").write_bytes(content)
    return Path(store.add(str(tmp_path / "evil.tar")).layers[0])


def refusal(store: Store, tmp_path: Path, content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        add(store, tmp_path, content)
    # Nothing of it is kept, not even half.
    assert store.images() == []
    assert os.listdir(f"{store.path}/layers") == os.listdir(f"{store.path}/new") == []
    return str(caught.value)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/../evil", "a/b/.."])
def test_a_name_that_goes_up_is_refused(store, tmp_path, name):
    assert f"{name!r}: a name with '..' is refused" in refusal(
        store, tmp_path, tar([directory("a"), entry(name, b"x")])
    )


def test_an_absolute_name_stays_inside(store, tmp_path):
    target = tmp_path / "absolute"
    root = add(store, tmp_path, tar([entry(str(target), b"x")], tarfile.GNU_FORMAT))
    assert not target.exists()
    assert (root / str(target).lstrip("/")).read_bytes() == b"x"


@pytest.mark.parametrize("leads", ["{outside}", "../../../../../../../../../../..{outside}"])
def test_a_link_out_of_the_layer_leads_nowhere(store, tmp_path, leads):
    outside = tmp_path / "outside"
    outside.mkdir()
    to = leads.format(outside=outside)
    text = refusal(store, tmp_path, tar([symlink("out", to), entry("out/evil", b"x")]))
    assert "'out': lies below a link that leads nowhere" in text
    assert list(outside.iterdir()) == []


def test_a_file_is_never_written_through_a_link(store, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    root = add(
        store, tmp_path, tar([symlink("f", str(victim)), entry("f", b"evil"), symlink("g", "f"), entry("g", b"x")])
    )
    assert victim.read_text() == "mine"
    assert not (root / "f").is_symlink()


@pytest.mark.parametrize("to", ["/etc/passwd", "../../../../etc/passwd", "missing", "d", "d/../f"])
def test_a_hard_link_to_what_is_not_in_the_layer_is_refused(store, tmp_path, to):
    text = refusal(store, tmp_path, tar([directory("d"), entry("f"), hardlink("h", to)], tarfile.GNU_FORMAT))
    assert "'h': a hard link" in text or "'..' is refused" in text


def test_a_hard_link_through_a_link_stays_inside(store, tmp_path):
    text = refusal(store, tmp_path, tar([symlink("s", "/"), hardlink("h", "s/etc/passwd")], tarfile.GNU_FORMAT))
    assert "a hard link to 's/etc/passwd', which is not there" in text


@pytest.mark.parametrize("kind", [tarfile.BLKTYPE, tarfile.CHRTYPE])
def test_devices_are_left_out(store, tmp_path, kind):
    members = [device("sda", kind), device("null", tarfile.CHRTYPE, 1, 3), device("wh", tarfile.CHRTYPE, 0, 0)]
    root = add(store, tmp_path, tar([*members, hardlink("again", "sda"), entry("f", b"x")], tarfile.GNU_FORMAT))
    assert os.listdir(root) == ["f"]


def test_the_store_is_the_users_alone(store, tmp_path):
    add(store, tmp_path, tar([entry("su", b"x", mode=0o4755)]))
    assert os.stat(store.path).st_mode & 0o7777 == 0o700
    os.chmod(store.path, 0o755)
    with pytest.raises(ImageError, match=r"the store must be .*'s alone"):
        add(store, tmp_path, tar([entry("other", b"y")]))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_decompression_bomb_is_stopped(store, tmp_path, compress, monkeypatch):
    monkeypatch.setattr(streams, "_FREE", 1 << 20)
    bomb = tar([entry("big", bytes(40 << 20))])
    text = refusal(store, tmp_path, compress(bomb))
    assert "a decompression bomb" in text
    assert "more than 200 times larger when it is unpacked" in text


def test_a_sparse_file_of_exabytes_takes_no_space(store, tmp_path):
    head = entry("huge", b"", pax_headers={"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 43)})
    root = add(store, tmp_path, tar([head]))
    assert (root / "huge").stat().st_size == 1 << 43
    assert (root / "huge").stat().st_blocks == 0


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"GNU.sparse.map": "0,10", "GNU.sparse.size": "5"}, "the piece 0+10 of 5 bytes"),
        ({"GNU.sparse.map": "5,4,0,4", "GNU.sparse.size": "50"}, "the piece 0+4 of 50 bytes"),
        ({"GNU.sparse.map": "0,4", "GNU.sparse.size": "50"}, "whose map is not that of its content"),
        ({"GNU.sparse.map": "0,4", "GNU.sparse.size": "8"}, "whose map is not that of its content"),
        ({"GNU.sparse.map": "0", "GNU.sparse.size": "50"}, "half a map"),
        ({"GNU.sparse.map": "x", "GNU.sparse.size": "50"}, "the number b'x'"),
        ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}, "without its map"),
    ],
)
def test_a_sparse_map_that_lies_is_refused(store, tmp_path, fields, told):
    assert told in refusal(store, tmp_path, tar([entry("f", b"12345678", pax_headers=fields)]))


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([entry("f", uid=2**32 - 1)], "an owner or a time out of range"),
        ([entry("f", pax_headers={"mtime": "99999999999"})], "an owner or a time out of range"),
        ([entry("d/.wh.")], "'d/.wh.': a whiteout of nothing"),
        ([entry("d/.wh...")], "'d/.wh...': a whiteout of nothing"),
        ([entry(".wh.x", b"content")], "'.wh.x': content where none can be"),
        ([entry(".wh.d/f", b"x")], "lies below a whiteout"),
        ([entry("f"), entry("f/below", b"x")], "lies below what is no directory"),
        ([directory("d"), entry("d/f"), entry("d", b"x")], "replaces a directory that is not empty"),
        ([symlink("s", "")], "a symbolic link to nothing"),
        ([entry("x" * 300, b"")], "File name too long"),
        ([entry("/".join(["d" * 200] * 25), b"")], "a name of more than 4095 bytes"),
    ],
)
def test_entries_that_make_no_sense_are_refused_by_name(store, tmp_path, members, told):
    assert told in refusal(store, tmp_path, tar(members))


def test_broken_archives_are_told_as_such(store, tmp_path):
    good = tar([entry("f", b"x" * 3000), entry("g", b"y" * 3000)])
    damaged = bytearray(good)
    damaged[4000:4512] = b"\xff" * 512
    assert "cut off" in refusal(store, tmp_path, good[:2000])
    assert "the checksum of a header is wrong" in refusal(store, tmp_path, bytes(damaged))
    assert "cut off" in refusal(store, tmp_path, gzip.compress(good)[:-20])
    assert "no image (accepted: a directory, a tar," in refusal(store, tmp_path, b"#!/bin/sh\n" * 1000)
    assert "no image (accepted: a directory, a tar," in refusal(store, tmp_path, b"")


def test_an_extended_header_of_gigabytes_is_refused(store, tmp_path):
    info, _ = entry("x", type=b"x")
    info.size = 2 << 30
    assert "an extended header of 2147483648 bytes" in refusal(
        store, tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    )


def test_a_path_deeper_than_any_stack_is_kept_and_removed(store, tmp_path):
    deep = "/".join(["d"] * 1900)
    add(store, tmp_path, tar([entry(f"{deep}/f", b"x")], tarfile.GNU_FORMAT))
    (image,) = store.images()
    store.remove(image.id)
    assert os.listdir(f"{store.path}/layers") == os.listdir(f"{store.path}/new") == []


def layout_refusal(store: Store, path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        store.add(str(path))
    assert store.images() == []
    return str(caught.value)


def test_a_layer_that_is_not_the_promised_one_is_refused(store, tmp_path):
    good, other = tar([entry("f", b"good")]), tar([entry("f", b"evil")])
    text = layout_refusal(store, a.oci_layout(tmp_path / "l", [good], blobs=[other]))
    assert f"its content has the digest sha256:{a.digest(other)}, and sha256:{a.digest(good)} was promised" in text


def test_a_blob_that_its_digest_does_not_fit_is_refused(store, tmp_path):
    layout = a.oci_layout(tmp_path / "l", [tar([entry("f")])])
    index = json.loads((layout / "index.json").read_text())
    blob = layout / "blobs/sha256" / index["manifests"][0]["digest"].partition(":")[2]
    blob.write_bytes(blob.read_bytes() + b" ")
    assert "is not what its digest says" in layout_refusal(store, layout)


@pytest.mark.parametrize("wrong", ["sha256:../../../etc/passwd", "md5:abc", "sha256:" + "A" * 64, "", 5])
def test_a_digest_that_is_a_path_is_refused(store, tmp_path, wrong):
    layout = a.oci_layout(tmp_path / "l", [tar([entry("f")])])
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["digest"] = wrong
    (layout / "index.json").write_text(json.dumps(index))
    assert "(accepted: 'sha256:' and 64 hex digits)" in layout_refusal(store, layout)


def test_a_layout_cannot_read_files_outside_of_itself(store, tmp_path):
    layer = tar([entry("f", b"x")])
    outside = tmp_path / "outside"
    outside.write_bytes(layer)
    layout = a.oci_layout(tmp_path / "l", [layer])
    blob = layout / "blobs/sha256" / a.digest(layer)
    for target in (str(outside), "../../../outside"):
        blob.unlink()
        blob.symlink_to(target)
        assert "No such file or directory" in layout_refusal(store, layout)
    blob.unlink()
    os.mkfifo(blob)
    assert "is no file" in layout_refusal(store, layout)


@pytest.mark.parametrize("path", ["../../outside.tar", "/etc/passwd", "missing/layer.tar"])
def test_a_saved_image_reads_its_own_files_only(store, tmp_path, path):
    layer = tar([entry("f", b"x")])
    settings = a.config([layer])
    manifest = [{"Config": "c.json", "RepoTags": [], "Layers": [path]}]
    members = [entry("manifest.json", json.dumps(manifest).encode()), entry("c.json", settings)]
    (tmp_path / "evil.tar").write_bytes(tar(members))
    assert f"{path} is missing" in layout_refusal(store, tmp_path / "evil.tar")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"Env": "PATH=/bin"}, "Env 'PATH=/bin': a list of texts is expected"),
        ({"Env": [5]}, "Env [5]: a list of texts is expected"),
        ({"Env": ["novalue\0"]}, "a list of texts is expected"),
        ({"Env": ["=value"]}, "NAME=VALUE is expected"),
        ({"Cmd": ["a\0b"]}, "a list of texts is expected"),
        ({"Entrypoint": ["\ud800"]}, "a list of texts is expected"),
        ({"WorkingDir": "relative"}, "an absolute path is expected"),
        ({"User": ["root"]}, "a text is expected"),
        ({"Volumes": ["/x"]}, "a table is expected"),
    ],
)
def test_a_config_of_the_wrong_kinds_is_refused(store, tmp_path, config, told):
    layout = a.oci_layout(tmp_path / "l", [tar([entry("f")])], **config)
    assert told in layout_refusal(store, layout)


def test_a_config_that_is_no_table_is_refused(store, tmp_path):
    layer = tar([entry("f", b"x")])
    settings = json.dumps({**json.loads(a.config([layer])), "config": 5}).encode()
    manifest = [{"Config": "c.json", "RepoTags": [], "Layers": ["l.tar"]}]
    members = [entry("manifest.json", json.dumps(manifest).encode()), entry("c.json", settings), entry("l.tar", layer)]
    (tmp_path / "evil.tar").write_bytes(tar(members))
    assert "config 5: a table is expected" in layout_refusal(store, tmp_path / "evil.tar")


def test_json_that_is_none_or_bottomless_is_refused(store, tmp_path):
    layout = a.oci_layout(tmp_path / "l", [tar([entry("f")])])
    for text in ("{", "[" * 100_000, "[]", "17"):
        (layout / "index.json").write_text(text)
        assert "index.json is no" in layout_refusal(store, layout)


def test_more_layers_than_a_kernel_stacks_are_refused(store, tmp_path):
    layers = [tar([entry("f", str(n).encode())]) for n in range(501)]
    assert "501 layers (accepted: up to 500)" in layout_refusal(store, a.oci_layout(tmp_path / "l", layers))


def test_random_damage_gives_an_error_or_an_image_and_nothing_else(store, tmp_path):
    import random

    chance = random.Random(5)
    members = [directory("d"), entry("d/f", b"x" * 700), symlink("l", "d"), hardlink("h", "d/f"), entry("l/.wh.gone")]
    good = tar([*members, entry("long" * 60, b"z", pax_headers={"SCHILY.xattr.user.a": "b"})])
    before = sorted(os.listdir(tmp_path.parent))
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        block = chance.randrange(len(bad) // 512) * 512
        if chance.random() < 0.7:
            # With its checksum made right again, the damage gets further.
            header = bytes(bad[block : block + 148]) + b" " * 8 + bytes(bad[block + 156 : block + 512])
            bad[block + 148 : block + 156] = b"%06o\0 " % sum(header)
        (tmp_path / "evil.tar").write_bytes(bad)
        try:
            store.add(str(tmp_path / "evil.tar"))
        except ImageError:
            continue
    assert sorted(os.listdir(tmp_path.parent)) == before
    assert sorted(os.listdir(tmp_path)) == ["evil.tar", "store"]
