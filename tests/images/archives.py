"""Archives made for tests, with the standard library's tarfile: an author of tars that is not ours."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Content = tuple[tarfile.TarInfo, bytes]


def entry(name: str, content: bytes = b"", **fields: Any) -> Content:
    """A member of a tar: a file with `content` unless `fields` say otherwise."""
    info = tarfile.TarInfo(name)
    info.mtime = 1_600_000_000
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def directory(name: str, mode: int = 0o755, **fields: Any) -> Content:
    return entry(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, to: str) -> Content:
    return entry(name, type=tarfile.SYMTYPE, linkname=to, mode=0o777)


def hardlink(name: str, to: str) -> Content:
    return entry(name, type=tarfile.LNKTYPE, linkname=to)


def device(name: str, kind: bytes = tarfile.BLKTYPE, major: int = 8, minor: int = 0) -> Content:
    return entry(name, type=kind, devmajor=major, devminor=minor, mode=0o666)


def tar(members: Iterable[Content], form: int = tarfile.PAX_FORMAT) -> bytes:
    """The bytes of a tar of `members`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def config(layers: Iterable[bytes], **fields: Any) -> bytes:
    """An image's config for layers of these (plain) tars."""
    ids = [f"sha256:{digest(layer)}" for layer in layers]
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}}
    return json.dumps({**document, "config": fields}).encode()


def saved(layers: list[bytes], *, link: bool = False, tags: tuple[str, ...] = ("thing:1",), **fields: Any) -> bytes:
    """What `docker save` wrote before version 25; `link`: layers are links to the first, as it did for equal ones."""
    settings = config(layers, **fields)
    paths = [f"{n:064x}/layer.tar" for n in range(len(layers))]
    manifest = [{"Config": f"{digest(settings)}.json", "RepoTags": list(tags), "Layers": paths}]
    members = []
    for number, (path, layer) in enumerate(zip(paths, layers, strict=True)):
        members.append(directory(path.partition("/")[0]))
        members.append(symlink(path, f"../{paths[0]}") if link and number else entry(path, layer))
    members += [entry(f"{digest(settings)}.json", settings), entry("manifest.json", json.dumps(manifest).encode())]
    return tar(members)


def oci_layout(path: Path, layers: list[bytes], blobs: list[bytes] | None = None, **fields: Any) -> Path:
    """An OCI layout at `path`; `blobs`: what is stored of the layers (compressed ones)."""
    folder = path / "blobs" / "sha256"
    folder.mkdir(parents=True)

    def put(content: bytes, kind: str) -> dict[str, Any]:
        (folder / digest(content)).write_bytes(content)
        return {"mediaType": kind, "digest": f"sha256:{digest(content)}", "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "config": put(config(layers, **fields), "application/vnd.oci.image.config.v1+json"),
        "layers": [put(blob, "application/vnd.oci.image.layer.v1.tar") for blob in blobs or layers],
    }
    described = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}), encoding="utf-8")
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")
    return path


def listing(root: str | Path) -> dict[str, tuple[Any, ...]]:
    """What is below `root`: path -> kind, mode, owner, time, content or target, extended attributes."""
    found: dict[str, tuple[Any, ...]] = {}
    for top, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(top, name)
            at = path.lstat()
            content: object = ""
            if stat.S_ISLNK(at.st_mode):
                content = path.readlink()
            elif stat.S_ISREG(at.st_mode):
                content = digest(path.read_bytes())
            elif stat.S_ISCHR(at.st_mode):
                content = at.st_rdev
            attributes = {
                n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)
            }
            found[str(path.relative_to(root))] = (
                *(stat.filemode(at.st_mode), at.st_uid, at.st_gid, at.st_mtime_ns, content),
                tuple(sorted(attributes.items())),
            )
    return found
