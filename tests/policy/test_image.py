"""Configs of images: what runs in a box, as in Docker."""

from __future__ import annotations

import pytest

from pytest_nsbox.policy import init_layer
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.image import DEFAULT_PATH, Image, ImageConfig, ImageFacts, ImageRoot, read_config
from pytest_nsbox.policy.plan import Bind, BindInit, HostFacts, MakeWorkdir, OverlayImage, make_plan
from pytest_nsbox.policy.spec import Spec


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "given", "run"),
    [
        ((), ("sh",), (), ("sh",)),
        ((), ("sh",), ("ls",), ("ls",)),
        (("/init",), ("sh", "-c"), (), ("/init", "sh", "-c")),
        (("/init",), ("sh",), ("ls", "-l"), ("/init", "ls", "-l")),
        (("/init",), (), (), ("/init",)),
    ],
)
def test_entrypoint_and_command_are_put_together_as_in_docker(entrypoint, cmd, given, run):
    assert ImageConfig(entrypoint=entrypoint, cmd=cmd).argv(given) == run


def test_an_image_without_a_command_needs_one():
    with pytest.raises(BoxFailed, match="the image has neither Cmd nor Entrypoint"):
        ImageConfig().argv()


def test_the_marker_wins_over_the_image():
    config = ImageConfig(env=(("PATH", "/image"), ("A", "1")), user="7", workdir="/image")
    assert config.applied(Spec()) == Spec(env=(("PATH", "/image"), ("A", "1")), user="7", workdir="/image")
    spec = Spec(env=(("A", None), ("B", "2")), user="8", workdir="/mine")
    assert config.applied(spec) == Spec(env=(("PATH", "/image"), ("A", None), ("B", "2")), user="8", workdir="/mine")
    assert ImageConfig().applied(Spec()) == Spec(env=(("PATH", DEFAULT_PATH),))


def test_a_config_is_read_and_shown_as_docker_spells_it():
    written = {
        "Env": ["A=b=c", "EMPTY="],
        "Cmd": ["run"],
        "Entrypoint": ["/init"],
        "WorkingDir": "/srv",
        "User": "me:us",
        "Volumes": {"/data": {}},
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGINT",
        "Labels": {"a": "b"},
    }
    assert read_config(written).shown() == written
    assert read_config({"Cmd": None, "Labels": None}) == ImageConfig()
    assert read_config({"Cmd": "echo hi"}).cmd == ("/bin/sh", "-c", "echo hi")


def facts(**fields) -> ImageFacts:
    plain = Image(layers=("/low", "/middle", "/low", "/top")).for_box(["/deep/down", "/srv"], ["/lib/x.so"])
    return ImageFacts(root=ImageRoot.from_plain(plain), hosts="H", hostname="here", resolv_conf="R", **fields)


def test_a_plan_with_an_image_stacks_its_layers_and_shows_what_of_the_host_is_wanted():
    plan = make_plan(Spec(workdir="/w"), HostFacts(), facts(missing=(("/usr/lib/x.so", "/lib/x.so"),)))
    assert plan.tree[:3] == (
        # The kernel refuses the same layer twice; the lower one has nothing to add.
        OverlayImage(0, "/", ("/top", "/low", "/middle"), init=True),
        OverlayImage(1, "/srv", ("/srv",)),
        OverlayImage(2, "/deep/down", ("/deep/down",)),
    )
    assert [op for op in plan.tree if isinstance(op, (Bind, BindInit, MakeWorkdir))] == [
        BindInit("/etc/hosts", "H"),
        BindInit("/etc/hostname", "here\n"),
        BindInit("/etc/resolv.conf", "R"),
        Bind("/usr/lib/x.so", "/lib/x.so", readonly=True),
        MakeWorkdir("/w"),
    ]
    assert plan.image
    assert not plan.sockets


def test_users_of_a_plan_are_those_of_the_image():
    image = facts(passwd="app:x:77:88::/:\n")
    assert make_plan(Spec(user="app"), HostFacts(passwd="other:x:1:1::/:\n"), image).user == (77, 88)
    with pytest.raises(BoxFailed, match="no 'other' in the box's /etc/passwd"):
        make_plan(Spec(user="other"), HostFacts(passwd="other:x:1:1::/:\n"), image)


def test_a_box_with_a_network_of_its_own_asks_no_name_server_of_the_hosts():
    plan = make_plan(Spec(net="none", hostname="box"), HostFacts(), facts())
    texts = {op.target: op.text for op in plan.tree if isinstance(op, BindInit)}
    assert texts["/etc/resolv.conf"] == ""
    assert texts["/etc/hostname"] == "box\n"
    assert "127.0.0.1\tbox\n" in texts["/etc/hosts"]


def test_hosts_files_name_the_other_boxes():
    text = init_layer.hosts("me", [("10.0.0.2", ["me"]), ("10.0.0.3", ["db", "db.lan"])])
    assert text.endswith("ff02::2\tip6-allrouters\n10.0.0.2\tme\n10.0.0.3\tdb db.lan\n")
    assert text.startswith("127.0.0.1\tlocalhost\n")
    assert init_layer.resolv_conf(["10.0.0.1"], ["lan", "local"]) == "nameserver 10.0.0.1\nsearch lan local\n"
