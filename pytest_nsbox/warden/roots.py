"""Which root a test's box gets by `rootfs=`: the image, and what of pytest's process must be in it; pytest's side."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext

from pytest_nsbox.images import interpreter
from pytest_nsbox.images.shelf import check_name
from pytest_nsbox.images.store import Store
from pytest_nsbox.policy.errors import BoxFailed, ImageError
from pytest_nsbox.policy.errors import are_shown_at_the_caller as __tracebackhide__  # noqa: F401 - pytest reads it
from pytest_nsbox.policy.image import Image, read_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pytest_nsbox.policy.spec import Spec
    from pytest_nsbox.warden.engine import Engine


def resolve(spec: Spec, rootdir: str) -> tuple[Spec, tuple[object, ...]]:
    """Return `spec` with the config of its image applied, and what the warden must know of the image and of this
    interpreter. Raises BoxFailed.
    """
    assert spec.rootfs is not None
    image = _find(spec.rootfs, rootdir)
    needed = interpreter.needed(rootdir)
    return image.config.applied(spec), image.for_box(needed.directories, needed.files)


# By store and name: what the store's names were when the image was found.
_named: dict[tuple[str, str], tuple[tuple[int, int], Image]] = {}


def _find(wanted: str, rootdir: str) -> Image:
    """Return the image `wanted`; a name is looked up once as long as nobody changes the store, for each test asks."""
    store = Store()
    if wanted.startswith(("/", ".")):
        return store.find(wanted, rootdir)
    key, now = (store.path, wanted), store.state()
    before, image = _named.get(key, (None, None))
    if image is None or before != now:
        image = store.named(wanted)
        if image is None:
            return store.find(wanted, rootdir)
        _named[key] = now, image
    return image


def tell(do: str, rootdir: str, wanted: str, name: str | None = None) -> dict[str, Any]:
    """Find ("find") or import ("add") an image, for a container; return it as plain values, or what is wrong.

    A test in a box has this done by pytest's process: what it would import itself is thrown away with its box.
    """
    store = Store()
    try:
        image = store.add(os.path.join(rootdir, wanted), name) if do == "add" else store.find(wanted, rootdir)
    except ImageError as error:
        return {"error": str(error)}
    return _plain(image)


def commit(engine: Engine, box: str, base: dict[str, Any], *, name: str | None, pause: bool) -> dict[str, Any]:
    """Keep what the box named `box` wrote as an image; return that as `tell` does. The process that does it has the
    store.

    base   "id" or "directory" of the image that the box was started from, and the new image's "config"
    pause  let nobody write meanwhile
    """
    store = Store()
    try:
        if name is not None:
            check_name(name)
        with _paused(engine, box) if pause else nullcontext():
            value, fds = engine.fetch("commit", box=box)
            try:
                image = store.commit(
                    _parent(store, base),
                    fds[0],
                    merged=fds[1],
                    root_id=value["root"],
                    leave_out=value["leave_out"],
                    config=read_config(base["config"]),
                )
            finally:
                for fd in fds:
                    os.close(fd)
            # One that was removed meanwhile took half of its files along.
            engine.ask("state", box=box)
            if name is not None:
                store.give_names(image, [name])
    except BoxFailed as error:
        return {"error": str(error)}
    return _plain(store.find(image.id))


def _parent(store: Store, base: dict[str, Any]) -> Image | None:
    if base.get("id"):
        return store.find(base["id"])
    return Image(layers=(base["directory"],)) if base.get("directory") else None


@contextmanager
def _paused(engine: Engine, box: str) -> Iterator[None]:
    if engine.ask("state", box=box)[0]["status"] != "running":
        yield
        return
    try:
        engine.ask("pause", box=box)
    except BoxFailed:
        # It has ended in between.
        if engine.ask("state", box=box)[0]["status"] != "exited":
            raise
    try:
        yield
    finally:
        if engine.ask("state", box=box)[0]["status"] == "paused":
            engine.ask("resume", box=box)


def _plain(image: Image) -> dict[str, Any]:
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
