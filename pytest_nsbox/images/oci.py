"""Images in OCI layouts and in archives of `docker save`, and layouts written. Source: the OCI image specification
(image-layout.md, image-index.md, manifest.md, config.md), Docker's image specification v1.2 (manifest.json).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_nsbox.images.archives import document
from pytest_nsbox.policy.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_nsbox.images.archives import Layout

# The first is a tag to skopeo and umoci; the second, containerd's and Docker's, the whole name.
_REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
# What the specification calls the machines that os.uname() names otherwise.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "loongarch64": "loong64"}
# More than any builder makes, and more than overlayfs stacks.
MOST_LAYERS = 500


class Found(NamedTuple):
    """An image in a layout: its config's bytes, (path of its blob, diff id) of each layer, the lowest first, and its
    names.
    """

    config: bytes
    layers: tuple[tuple[str, str], ...]
    names: tuple[str, ...]


def read_image(layout: Layout, reference: str = "") -> Found:
    """Return the image of `layout`, of several the one named `reference`. Raises ImageError."""
    if layout.has("manifest.json"):
        return _read_saved(layout, reference)
    return _read_oci(layout, reference)


def architecture() -> str:
    """Return this machine's architecture as images name it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def _read_saved(layout: Layout, reference: str) -> Found:
    entries = _load(layout, "manifest.json", list)
    names = [tuple(str(tag) for tag in _list(entry.get("RepoTags"))) for entry in map(_table, entries)]
    place = _choose(layout, names, reference)
    entry = _table(entries[place])
    config = document(layout, str(entry.get("Config")))
    layers = [str(path) for path in _list(entry.get("Layers"))]
    return Found(config, _with_ids(layout, config, layers), names[place])


def _read_oci(layout: Layout, reference: str) -> Found:
    index = _load(layout, "index.json", dict)
    found = list(_manifests(layout, index, 0))
    known = [tuple(name for name in names if name) for names, _ in found]
    place = _choose(layout, known, reference)
    manifest = found[place][1]
    config = _blob(layout, _table(manifest.get("config")))
    layers = [_path(layout, _table(layer)) for layer in _list(manifest.get("layers"))]
    names = tuple(name for name in found[place][0][:1] if name)
    return Found(config, _with_ids(layout, config, layers), names)


def _manifests(layout: Layout, index: dict[str, Any], depth: int) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield ((full name, tag), manifest) of the images for this machine; an index inside an index gives one."""
    if depth > 4:
        raise ImageError(f"{layout.name}: indexes within indexes")
    for descriptor in map(_table, _list(index.get("manifests"))):
        where = _table(descriptor.get("platform"))
        if where and (where.get("os"), where.get("architecture")) != ("linux", architecture()):
            continue
        notes = _table(descriptor.get("annotations"))
        names = (str(notes.get(_FULL_NAME, "")), str(notes.get(_REF_NAME, "")))
        manifest = _table(_parse(layout, str(descriptor.get("digest")), _blob(layout, descriptor)))
        if "manifests" in manifest:
            yield from (
                (names if any(names) else inner, found) for inner, found in _manifests(layout, manifest, depth + 1)
            )
        else:
            yield names, manifest


def _choose(layout: Layout, names: list[tuple[str, ...]], reference: str) -> int:
    if reference:
        matching = [place for place, own in enumerate(names) if reference in own or f"{reference}:latest" in own]
    else:
        matching = list(range(len(names)))
    if len(matching) == 1:
        return matching[0]
    shown = ", ".join(repr(name) for own in names for name in own) or "none with a name"
    if not matching:
        wanted = f"no image {reference!r} in it" if reference else f"no image for linux/{architecture()} in it"
        raise ImageError(f"{layout.name}: {wanted} (images: {shown})")
    raise ImageError(
        f"{layout.name}: {len(matching)} images in it; say which with {layout.name}:NAME (images: {shown})"
    )


def _with_ids(layout: Layout, config: bytes, paths: list[str]) -> tuple[tuple[str, str], ...]:
    ids = diff_ids(_table(_parse(layout, "the config", config)), layout.name)
    if len(ids) != len(paths):
        raise ImageError(f"{layout.name}: {len(paths)} layers, and {len(ids)} in the config")
    return tuple(zip(paths, ids, strict=True))


def diff_ids(config: dict[str, Any], name: str) -> list[str]:
    """Return the layers that an image's config lists, as 64 hex digits each. Raises ImageError."""
    ids = [_hex(str(digest), name) for digest in _list(_table(config.get("rootfs")).get("diff_ids"))]
    if len(ids) > MOST_LAYERS:
        raise ImageError(f"{name}: {len(ids)} layers (accepted: up to {MOST_LAYERS})")
    return ids


def _hex(digest: str, name: str) -> str:
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ImageError(f"{name}: the digest {digest[:100]!r} (accepted: 'sha256:' and 64 hex digits)")
    return value


def _path(layout: Layout, descriptor: dict[str, Any]) -> str:
    return f"blobs/sha256/{_hex(str(descriptor.get('digest')), layout.name)}"


def _blob(layout: Layout, descriptor: dict[str, Any]) -> bytes:
    path = _path(layout, descriptor)
    content = document(layout, path)
    if hashlib.sha256(content).hexdigest() != path.rpartition("/")[2]:
        raise ImageError(f"{layout.name}: {path} is not what its digest says")
    return content


def _load(layout: Layout, path: str, kind: type) -> Any:
    value = _parse(layout, path, document(layout, path))
    if not isinstance(value, kind):
        raise ImageError(f"{layout.name}: {path} is no {'list' if kind is list else 'table'}")
    return value


def _parse(layout: Layout, what: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise ImageError(f"{layout.name}: {what} is no JSON") from None


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def write_layout(directory: str, config: bytes, layers: Iterable[tuple[str, Iterator[bytes]]], name: str) -> None:
    """Write an OCI layout with one image into `directory`, which exists and is empty.

    layers  (diff id, tar) of each, the lowest first; they are not compressed, so the digest of a blob is its diff id
    """
    blobs = f"{directory}/blobs/sha256"
    os.makedirs(blobs)
    descriptors = [_write_layer(blobs, digest, tar) for digest, tar in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _write_blob(blobs, _CONFIG, config),
        "layers": descriptors,
    }
    written = _write_blob(blobs, _MANIFEST, json.dumps(manifest).encode())
    if name:
        written["annotations"] = {_FULL_NAME: name, _REF_NAME: name.rpartition(":")[2]}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [written]}
    for path, value in (("index.json", index), ("oci-layout", {"imageLayoutVersion": "1.0.0"})):
        with open(f"{directory}/{path}", "x", encoding="utf-8") as file:
            json.dump(value, file)


def _write_layer(blobs: str, digest: str, tar: Iterator[bytes]) -> dict[str, Any]:
    path, found, size = f"{blobs}/{digest}", hashlib.sha256(), 0
    if os.path.exists(path):
        # The same layer again, further down in the image.
        return {"mediaType": _LAYER, "digest": f"sha256:{digest}", "size": os.path.getsize(path)}
    with open(path, "xb") as file:
        for chunk in tar:
            file.write(chunk)
            found.update(chunk)
            size += len(chunk)
    if found.hexdigest() != digest:
        raise ImageError(f"layer {digest[:12]} was changed in the store: import the image again")
    return {"mediaType": _LAYER, "digest": f"sha256:{digest}", "size": size}


def _write_blob(blobs: str, kind: str, content: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    with open(f"{blobs}/{digest}", "wb") as file:
        file.write(content)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}
