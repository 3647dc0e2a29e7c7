"""Which root a test's box gets by `rootfs=`: the image, and what of pytest's process must be in it; pytest's side."""

from __future__ import annotations

import os

from pytest_nsbox.images import interpreter
from pytest_nsbox.images.store import Store
from pytest_nsbox.policy.errors import BoxFailed, ImageError
from pytest_nsbox.policy.image import Image, read_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pytest_nsbox.policy.spec import Spec


def resolve(spec: Spec, rootdir: str) -> tuple[Spec, tuple[object, ...]]:
    """Return `spec` with the config of its image applied, and what the warden must know of the image and of this
    interpreter. Raises BoxFailed.
    """
    assert spec.rootfs is not None
    image = Store().find(spec.rootfs, rootdir)
    needed = interpreter.needed(rootdir)
    return image.config.applied(spec), image.for_box(needed.directories, needed.files)


def tell(do: str, rootdir: str, wanted: str, name: str | None = None) -> dict[str, Any]:
    """Find ("find") or import ("add") an image, for a container; return it as plain values, or what is wrong.

    A test in a box has this done by pytest's process: what it would import itself is thrown away with its box.
    """
    store = Store()
    try:
        image = store.add(os.path.join(rootdir, wanted), name) if do == "add" else store.find(wanted, rootdir)
    except ImageError as error:
        return {"error": str(error)}
    return {
        "id": image.id,
        "names": list(image.names),
        "layers": list(image.layers),
        "size": image.size,
        "config": image.config.shown(),
    }


def told(values: dict[str, Any]) -> Image:
    """Return the image that `tell` told. Raises BoxFailed if it told what is wrong."""
    if "error" in values:
        raise BoxFailed(values["error"])
    return Image(
        id=values["id"],
        names=tuple(values["names"]),
        layers=tuple(values["layers"]),
        size=values["size"],
        config=read_config(values["config"]),
    )
