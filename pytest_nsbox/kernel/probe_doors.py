"""The system calls of the probe's tries, in one object."""

from __future__ import annotations

import os
import struct

from pytest_nsbox.kernel import cgroup, libc, namespaces, net, process, systemd


class Doors:
    """The system calls of the tries. Tests put an object in its place that fails."""

    unshare = staticmethod(namespaces.unshare)
    setns = staticmethod(namespaces.setns)
    write_proc = staticmethod(namespaces.write_proc)
    write_maps = staticmethod(namespaces.write_maps)
    open_namespace = staticmethod(namespaces.open_namespace)
    set_clock_offsets = staticmethod(namespaces.set_clock_offsets)
    loopback_up = staticmethod(net.loopback_up)
    clone3 = staticmethod(process.clone3)
    open_pidfd = staticmethod(process.open_pidfd)
    open_session = staticmethod(cgroup.open_session)
    take_scope = staticmethod(systemd.take_scope)

    def mount(self, source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
        """mount(2)."""
        what = f"{kind or 'flags'} {target}"
        name = kind.encode() if kind else None
        libc.call("mount", what, source.encode(), os.fsencode(target), name, flags, os.fsencode(data))

    def idmapped_clone(self, source: str, target: str, userns: int) -> None:
        """Attach an idmapped copy of the mount ``source`` at ``target``."""
        self._changed_clone(source, target, 0x00100000, userns)  # MOUNT_ATTR_IDMAP

    def readonly_clone(self, source: str, target: str) -> None:
        """Attach a read-only copy of the mount ``source`` at ``target``."""
        self._changed_clone(source, target, 0x1, 0)

    def _changed_clone(self, source: str, target: str, attributes: int, userns: int) -> None:
        """Source: open_tree(2), mount_setattr(2), move_mount(2)."""
        path, empty, place = (libc.Buffer(os.fsencode(text)) for text in (source, "", target))
        here = -100 & 0xFFFFFFFF  # AT_FDCWD
        clone_cloexec, empty_path, move_empty = 0x1 | os.O_CLOEXEC, 0x1000, 0x4
        tree = libc.syscall("open_tree", source, libc.SYS_OPEN_TREE, here, path.address, clone_cloexec)
        # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
        wanted = libc.Buffer(struct.pack("=4Q", attributes, 0, 0, userns))
        words = (tree, empty.address, empty_path, wanted.address, wanted.size)
        libc.syscall("mount_setattr", f"idmap {source}" if userns else source, libc.SYS_MOUNT_SETATTR, *words)
        libc.syscall("move_mount", target, libc.SYS_MOVE_MOUNT, tree, empty.address, here, place.address, move_empty)

    def allow_all_filter(self) -> None:
        """Install a seccomp filter that lets everything pass. Source: seccomp(2)."""
        libc.call("prctl", "PR_SET_NO_NEW_PRIVS", 38, 1, 0, 0, 0)
        program = libc.Buffer(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))  # return SECCOMP_RET_ALLOW
        header = libc.Buffer(struct.pack("@HP", 1, program.address))
        libc.call("prctl", "PR_SET_SECCOMP", 22, 2, header.address, 0, 0)
