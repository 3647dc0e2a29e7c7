"""Every way to the kernel that making a box takes, in one object: tests put one in its place that fails at the n-th
call.
"""

from __future__ import annotations

import os
from _socket import sethostname

from pytest_nsbox.kernel import files, mount, namespaces, net, process
from pytest_nsbox.kernel.cgroup_tree import FILES, Files


class Doors:
    """The real ones."""

    cgroup_files: Files = FILES
    # Whether inits may go through doors that were recorded (`warden.recorded`).
    recorded = True

    # Mounts.
    new_mount = staticmethod(mount.new_mount)
    clone_tree = staticmethod(mount.clone_tree)
    attach = staticmethod(mount.attach)
    set_attributes = staticmethod(mount.set_attributes)
    make_private = staticmethod(mount.make_private)
    make_unbindable = staticmethod(mount.make_unbindable)
    detach = staticmethod(mount.detach)
    pivot_here = staticmethod(mount.pivot_here)
    cover_root = staticmethod(mount.cover_root)
    open_in = staticmethod(mount.open_in)
    forget_lookups = staticmethod(mount.forget_lookups)

    # Namespaces.
    unshare = staticmethod(namespaces.unshare)
    setns = staticmethod(namespaces.setns)
    write_maps = staticmethod(namespaces.write_maps)
    set_clock_offsets = staticmethod(namespaces.set_clock_offsets)
    open_namespace = staticmethod(namespaces.open_namespace)
    loopback_up = staticmethod(net.loopback_up)

    # Processes.
    clone3 = staticmethod(process.clone3)
    set_fs_ids = staticmethod(process.set_fs_ids)
    close_all_but = staticmethod(process.close_all_but)
    ignore_ended_children = staticmethod(process.ignore_ended_children)
    set_name = staticmethod(process.set_name)
    die_with_parent = staticmethod(process.die_with_parent)
    set_dumpable = staticmethod(process.set_dumpable)
    become = staticmethod(process.become)

    # Files.
    make_directory = staticmethod(files.make_directory)
    make_file = staticmethod(files.make_file)
    make_device = staticmethod(files.make_device)
    make_link = staticmethod(files.make_link)

    @staticmethod
    def set_hostname(name: str) -> None:
        """Set the host name of our UTS namespace."""
        files.attempt("sethostname", name, sethostname, name)

    @staticmethod
    def change_directory(where: int | str) -> None:
        """Make a directory, by its descriptor or path, our working directory."""
        files.attempt("chdir", str(where), os.chdir, where)

    @staticmethod
    def await_go(control: int, word: bytes) -> None:
        """Wait until `control` says `word`; end when it says anything else."""
        if os.read(control, len(word)) != word:
            os._exit(0)

    @staticmethod
    def close(fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)
