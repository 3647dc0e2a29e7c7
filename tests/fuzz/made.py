"""What is made of a fuzzer's bytes: plain data, frames, and archives whose checksums are right."""

from __future__ import annotations

import hashlib
import json
from typing import Any

BLOCK = 512
NAMES = ("a", "d/", "d/b", "../up", "/abs", "a/b/c", ".", "", "s", "d/.wh.b", "d/.wh..wh..opq", "x" * 101, "\udcff")
RECORDS = (
    "path",
    "linkpath",
    "size",
    "uid",
    "mtime",
    "GNU.sparse.map",
    "GNU.sparse.size",
    "GNU.sparse.major",
    "SCHILY.xattr.user.x",
)
FLAGS = b"0\x00123456 7xgLKSV"


def plain(given: Any, depth: int = 3) -> Any:
    """A value that JSON can hold; `given` is a FuzzedDataProvider."""
    kind = given.ConsumeIntInRange(0, 7 if depth else 5)
    if kind == 6:
        return [plain(given, depth - 1) for _ in range(given.ConsumeIntInRange(0, 4))]
    if kind == 7:
        return {text(given): plain(given, depth - 1) for _ in range(given.ConsumeIntInRange(0, 4))}
    return (None, given.ConsumeBool(), given.ConsumeInt(8), given.ConsumeRegularFloat(), text(given), 0)[kind]


def text(given: Any) -> str:
    made: str = given.ConsumeUnicode(given.ConsumeIntInRange(0, 12))
    return made


def tar(given: Any) -> bytes:
    """An archive of a few members, some of them cut off, broken, or not what they say."""
    out = b"".join(member(given) for _ in range(given.ConsumeIntInRange(0, 6)))
    if given.ConsumeBool():
        out += bytes(2 * BLOCK)
    if given.ConsumeIntInRange(0, 9) == 0:
        out = out[: given.ConsumeIntInRange(0, len(out))]
    return out


def member(given: Any) -> bytes:
    flag = FLAGS[given.ConsumeIntInRange(0, len(FLAGS) - 1) :][:1]
    content: bytes = given.ConsumeBytes(given.ConsumeIntInRange(0, 40))
    if flag in (b"x", b"g"):
        content = b"".join(record(given) for _ in range(given.ConsumeIntInRange(0, 3)))
    size = len(content) if given.ConsumeIntInRange(0, 5) else given.ConsumeIntInRange(0, 1 << 33)
    fields: dict[int, bytes] = {
        0: name(given),
        100: b"%07o\0" % given.ConsumeIntInRange(0, 0o7777),
        108: number(given, 8),
        116: number(given, 8),
        124: b"%011o\0" % size if given.ConsumeIntInRange(0, 9) else given.ConsumeBytes(12),
        136: number(given, 12),
        156: flag,
        157: name(given),
        257: (b"ustar\x0000", b"ustar  \0", b"")[given.ConsumeIntInRange(0, 2)],
        329: number(given, 8),
        345: name(given) if given.ConsumeBool() else b"",
    }
    block = bytearray(BLOCK)
    for offset, value in fields.items():
        end = min(BLOCK, offset + len(value))
        block[offset:end] = value[: end - offset]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % BLOCK)


def name(given: Any) -> bytes:
    if given.ConsumeIntInRange(0, 4) == 0:
        made: bytes = given.ConsumeBytes(given.ConsumeIntInRange(0, 100))
        return made
    return NAMES[given.ConsumeIntInRange(0, len(NAMES) - 1)].encode("utf-8", "surrogateescape")[:100]


def number(given: Any, length: int) -> bytes:
    if given.ConsumeIntInRange(0, 3) == 0:
        made: bytes = given.ConsumeBytes(length)
        return made
    return b"%0*o\0" % (length - 1, given.ConsumeIntInRange(0, 0o777))


def record(given: Any) -> bytes:
    key = RECORDS[given.ConsumeIntInRange(0, len(RECORDS) - 1)].encode()
    value: bytes = given.ConsumeBytes(given.ConsumeIntInRange(0, 20))
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length if given.ConsumeIntInRange(0, 9) else given.ConsumeIntInRange(0, 99)).encode() + rest


def saved(given: Any) -> list[tuple[str, bytes]]:
    """The files of what `docker save` and `skopeo copy` write, by their digests, with one of their documents spoilt."""
    layer = tar(given)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["A=b"]},
        "rootfs": {"diff_ids": [digest(layer)]},
    }
    spoilt = given.ConsumeIntInRange(0, 4)
    if spoilt == 0:
        spoil(given, config)
    configured = json.dumps(config).encode()
    manifest = {"schemaVersion": 2, "config": described(configured), "layers": [described(layer)]}
    if spoilt == 1:
        spoil(given, manifest)
    manifested = json.dumps(manifest).encode()
    index = {"schemaVersion": 2, "manifests": [described(manifested)]}
    old = [{"Config": f"blobs/sha256/{digest(configured)[7:]}", "RepoTags": ["a:b"], "Layers": [path_of(layer)]}]
    if spoilt == 2:
        spoil(given, index)
    if spoilt == 3:
        spoil(given, old)
    files = [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')]
    if given.ConsumeBool():
        files.append(("index.json", json.dumps(index).encode()))
    if given.ConsumeBool():
        files.append(("manifest.json", json.dumps(old).encode()))
    return [*files, *((path_of(content), content) for content in (configured, manifested, layer))]


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def path_of(content: bytes) -> str:
    return f"blobs/sha256/{digest(content)[7:]}"


def described(content: bytes) -> dict[str, Any]:
    return {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(content), "size": len(content)}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to everything that lies in plain data."""
    found = [path] if path else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*found, *(place for key, each in children for place in places(each, (*path, key)))]


def spoil(given: Any, document: Any) -> None:
    """Put anything in the place of something, or take it away."""
    every = places(document)
    *path, last = every[given.ConsumeIntInRange(0, len(every) - 1)]
    for key in path:
        document = document[key]
    if given.ConsumeBool():
        document[last] = plain(given)
    else:
        del document[last]
