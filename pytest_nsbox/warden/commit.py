"""What a container wrote to its root, given to the process that has the store of images."""

from __future__ import annotations

import os
import stat

from pytest_nsbox.kernel import files, mount
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.plan import OWN, Bind, BindInit, MountTmpfs
from pytest_nsbox.warden.acts import find
from pytest_nsbox.warden.ids import SHIFTED_ROOT
from pytest_nsbox.warden.order import LATER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.warden.containers import Containers
    from pytest_nsbox.warden.order import Order
    from pytest_nsbox.warden.tree import Tree


def commit(containers: Containers, order: Order) -> object:
    """Answer with the directory of what was written to the root, the root itself, and what of it is no part of an
    image.

    Directories below other mounts of the host are other layers; a root that is an image has but one.
    """
    container = find(containers, order)
    if container.box is None or not container.box.tree.layers:
        raise BoxFailed(f"the box {container.name!r} has no root yet")
    tree = container.box.tree
    if tree.session.mode == "rootless" and not tree.plan.image:
        raise BoxFailed("commit: the host's root of an ordinary user is put together from pieces: start it with rootfs")
    doors = containers.server.doors
    upper = files.open_directory(tree.layers[0].upper)
    try:
        # Without what is mounted on it.
        bare = doors.clone_tree("", at=tree.overlays[0])
        try:
            merged = files.open_directory(".", at=bare)
        finally:
            os.close(bare)
        try:
            value = {"root": _root_of(tree), "leave_out": sorted(_left_out(tree, upper, container.spec.workdir))}
            order.answer_with(value, (upper, merged))
        finally:
            os.close(merged)
    finally:
        os.close(upper)
    return LATER


def _root_of(tree: Tree) -> int:
    """Return the id that files of the box's root have on the host."""
    if tree.plan.ids is not None:
        return tree.session.facts.ids[0]
    return SHIFTED_ROOT if tree.plan.shifted else 0


def _left_out(tree: Tree, upper: int, workdir: str | None) -> set[str]:
    """Return what something is mounted on, directories that were made for that alone, what the box began without."""
    found = {op.target for op in tree.plan.tree if isinstance(op, Bind | BindInit | MountTmpfs)} | set(OWN)
    found |= {layer.target for layer in tree.layers[1:]}
    found |= {path for path in tree.hidden if _is_whiteout(upper, path)}
    for path in sorted(tree.made, key=lambda path: path.count("/"), reverse=True):
        wanted = workdir is not None and f"{workdir}/".startswith(f"{path}/")
        if not wanted and all(f"{path}/{name}" in found for name in _names(upper, path)):
            found.add(path)
    return found


def _is_whiteout(upper: int, path: str) -> bool:
    try:
        fd = mount.open_in(upper, path, os.O_PATH | os.O_NOFOLLOW)
    except KernelError:
        return False
    try:
        at = os.fstat(fd)
    finally:
        os.close(fd)
    return stat.S_ISCHR(at.st_mode) and at.st_rdev == 0


def _names(upper: int, path: str) -> list[str]:
    try:
        fd = mount.open_in(upper, path, os.O_RDONLY | os.O_DIRECTORY)
    except KernelError:
        # A file, or nothing any more.
        return []
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)
