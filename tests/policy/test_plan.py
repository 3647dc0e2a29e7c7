"""What is planned for a box, as data."""

from __future__ import annotations

import pytest

from pytest_nsbox.policy import plan as plans
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.mounts import Tmpfs, Volume
from pytest_nsbox.policy.neighbours import with_names_of
from pytest_nsbox.policy.plan import HostFacts, HostMount, Plan, make_plan
from pytest_nsbox.policy.spec import Spec

HOST = HostFacts(
    mounts=(
        HostMount(0, "/", writable=True),
        HostMount(1, "/home", writable=True),
        HostMount(2, "/boot/efi", writable=False),
        HostMount(3, "/etc/hosts", writable=False, directory=False),
    ),
    passwd="root:x:0:0:root:/root:/bin/sh\nme:x:1000:1001:Me:/home/me:/bin/sh\n",
    group="root:x:0:\nme:x:1001:\n",
)


def plan(**spec: object) -> Plan:
    return make_plan(Spec(**spec), HOST)  # type: ignore[arg-type]


def targets(made: Plan, kind: type) -> list[str]:
    return [op.target for op in made.tree if isinstance(op, kind)]  # type: ignore[union-attr]


def test_every_writable_mount_gets_a_layer_and_the_rest_is_shown() -> None:
    made = plan()
    assert targets(made, plans.Overlay) == ["/", "/home"]
    assert targets(made, plans.ShowMount) == ["/boot/efi", "/etc/hosts"]
    assert made.tree[0] == plans.Overlay(0, "/")


def test_every_box_has_devices_and_file_systems_of_its_own() -> None:
    made = plan()
    assert {op.name for op in made.tree if isinstance(op, plans.MakeDevice)} == {
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
    }
    assert [op.fstype for op in made.init if isinstance(op, plans.MountOwn)] == ["proc", "devpts", "mqueue"]
    assert isinstance(made.init[-1], plans.ShowCgroups)


def test_a_box_without_network_has_one_of_its_own_with_loopback() -> None:
    made = plan(net="none")
    assert "net" in made.namespaces
    assert plans.LoopbackUp() in made.init
    assert plans.MountOwn("sysfs", "/sys", readonly=True) in made.init
    assert not made.sockets
    assert "net" not in plan().namespaces
    assert plan().sockets


def test_mounts_are_made_from_the_outside_in() -> None:
    made = plan(volumes=(Volume("/src", "/a/b/c"), Volume("/src", "/a", readonly=True)), tmpfs=(Tmpfs("/a/b", 4096),))
    asked = [
        op for op in made.tree if isinstance(op, plans.Bind) or (isinstance(op, plans.MountTmpfs) and not op.devices)
    ]
    assert asked == [
        plans.Bind("/src", "/a", readonly=True),
        plans.MountTmpfs("/a/b", 4096, 0o1777),
        plans.Bind("/src", "/a/b/c", readonly=False),
    ]


def test_readonly_is_set_on_each_layer_after_all_mount_points_were_made() -> None:
    made = plan(readonly=True, volumes=(Volume("/src", "/new"),))
    last = made.tree[-2:]
    assert last == (plans.SetReadonly("/"), plans.SetReadonly("/home"))
    assert targets(plan(), plans.SetReadonly) == []


def test_what_boxes_within_are_made_of_is_shown_unless_something_is_hidden() -> None:
    shown = [op for op in plan().tree if isinstance(op, plans.ShowAgain)]
    assert shown == [plans.ShowAgain("/", "/dev/.nsbox/0"), plans.ShowAgain("/home", "/dev/.nsbox/1")]
    assert plans.SetReadonly("/dev/.nsbox/0") in plan(readonly=True).tree
    assert not any(isinstance(op, plans.ShowAgain) for op in plan(tmpfs=(Tmpfs("/home/me"),)).tree)


def test_privileged_boxes_have_no_user_namespace_and_hosts_ids() -> None:
    made = plan(privileged=True)
    assert "user" not in made.namespaces
    assert not made.shifted
    assert made.privileged
    assert "user" in plan().namespaces


def test_a_nested_box_binds_devices_and_keeps_ids() -> None:
    made = make_plan(Spec(), HostFacts(mode="nested", mounts=HOST.mounts))
    assert [op.name for op in made.tree if isinstance(op, plans.BindDevice)][:2] == ["null", "zero"]
    assert not any(isinstance(op, plans.MakeDevice) for op in made.tree)
    assert not made.shifted
    assert "user" in made.namespaces


def test_clocks_need_a_time_namespace_that_the_init_makes() -> None:
    made = plan(clock=(("boottime", 60.0),))
    assert plans.SetClocks(0.0, 60.0) in made.init
    assert "time" not in made.namespaces
    assert "time" in plan().namespaces
    with pytest.raises(BoxFailed, match=r"^clock: this kernel has no time namespaces"):
        make_plan(Spec(clock=(("boottime", 60.0),)), HostFacts(mounts=HOST.mounts, time_ns=False))


def test_only_trees_that_begin_empty_again_are_used_again() -> None:
    assert plan(mem=1 << 20, volumes=(Volume("/src", "/new"),)).reusable
    for spec in ({"disk": 4096}, {"tmpfs": (Tmpfs("/t"),)}, {"privileged": True}):
        assert not plan(**spec).reusable


def test_the_user_is_known_by_the_hosts_files() -> None:
    assert plan(user="me").user == (1000, 1001)
    assert plan(user="root").user is None
    assert plan().user is None


def test_hostname_is_set_by_the_init() -> None:
    assert plans.SetHostname("box") in plan(hostname="box").init


@pytest.mark.parametrize("target", ["/proc", "/proc/x", "/sys/fs", "/dev/pts"])
def test_nothing_is_mounted_where_the_init_mounts_later(target: str) -> None:
    with pytest.raises(BoxFailed, match=rf"^nothing can be mounted on {target}: /\w+(/\w+)? is the box's own$"):
        plan(tmpfs=(Tmpfs(target),))
    assert plan(tmpfs=(Tmpfs("/dev/x"),)).tree


def test_a_neighbours_names_take_the_place_of_the_boxes_own() -> None:
    files = {"hosts": "/a/hosts", "resolv.conf": "/a/resolv.conf", "hostname": "/a/hostname"}
    alone = plan(net="lan", volumes=(Volume("/x", "/etc/hosts", readonly=False, kind="bind"),))
    shared = with_names_of(alone, files)
    own = [op for op in shared.tree if isinstance(op, plans.BindInit)]
    assert own == [plans.BindInit(f"/etc/{name}", "", f"/a/{name}") for name in ("hosts", "resolv.conf")]
    # A volume is mounted over it.
    assert targets(shared, plans.Bind) == ["/etc/hosts"]
    assert shared.tree.index(own[0]) < next(n for n, op in enumerate(shared.tree) if isinstance(op, plans.Bind))
    assert not shared.reusable
    assert with_names_of(alone, {}) == alone
