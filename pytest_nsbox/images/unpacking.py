"""One layer, from the bytes of an archive to its directory in the store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_nsbox.images.frames import FILES, FRAMES, REPLACED, Frames
from pytest_nsbox.images.layers import Unpacker
from pytest_nsbox.images.streams import Hashed, check_space, decompressed
from pytest_nsbox.images.tarstream import Reader, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def unpack_layer(chunks: Iterator[bytes], directory: str, name: str) -> str:
    """Unpack a tar, which may be compressed, into the empty `directory`; return the sha256 of the plain tar, in hex.
    Raises ImageError.

    name  what the tar is called in errors
    """
    for part in (FILES, REPLACED):
        os.mkdir(f"{directory}/{part}", 0o755)
    root, replaced = os.open(f"{directory}/{FILES}", _DIRECTORY), os.open(f"{directory}/{REPLACED}", _DIRECTORY)
    try:
        # The root of a tar that does not mention it.
        os.fchmod(root, 0o755)
        with open(f"{directory}/{FRAMES}", "xb") as file, Hashed(decompressed(chunks, name)) as plain:
            frames = Frames(file)
            reader = Reader(Stream(iter(plain), name), name, frames.raw)
            unpacker = Unpacker(root, name, frames, check_space(root, name), replaced)
            unpacker.unpack(reader)
            frames.close()
            digest = plain.digest
        with open(f"{directory}/size", "x", encoding="ascii") as file:
            file.write(str(unpacker.size))
        return digest
    finally:
        os.close(root)
        os.close(replaced)
