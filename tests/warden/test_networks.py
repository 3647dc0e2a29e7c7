"""Networks of boxes, on the kernel: addresses, names, what cannot be reached, links that are cut."""

from __future__ import annotations

import errno
import marshal
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pytest_nsbox import BoxFailed
from pytest_nsbox.network import Network
from pytest_nsbox.nsbox import NsBox
from pytest_nsbox.policy.errors import SpecProblems
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden.client import Warden
from tests.warden.boxes import config, run_in, started
from tests.warden.servers import ASK, ask, process_of, python, serve, wait_until

# The warden's connection and the boxes' processes stay for the module.
pytestmark = [pytest.mark.keeps_running, pytest.mark.needs("bridge")]


@pytest.fixture
def lan(boxes: NsBox) -> Network:
    return boxes.network("lan")


def ipv6_of(lan: Network, name: str) -> str:
    return str(lan.inspect()["Containers"][name]["GlobalIPv6Address"])


class TestNetwork:
    def test_boxes_reach_each_other_by_name_and_address(self, boxes: NsBox, lan: Network):
        web, client = serve(boxes, "web", lan), boxes.start(["sleep", "60"], name="client", net="lan")
        assert web.ip == lan.inspect()["Containers"]["web"]["IPAddress"]
        assert ask(client, "web") in lan.inspect()["Containers"]["client"].values()
        assert ask(client, str(web.ip)) == client.ip
        assert web.inspect()["Networks"]["lan"]["IPAddress"] == web.ip

    @pytest.mark.needs("ipv6")
    def test_they_have_ipv6_too(self, boxes: NsBox, lan: Network):
        serve(boxes, "web", lan)
        client = boxes.start(["sleep", "60"], name="client", net=lan)
        there = lan.inspect()["Containers"]
        assert ask(client, there["web"]["GlobalIPv6Address"]) == there["client"]["GlobalIPv6Address"]
        assert len(lan.subnets) == 2

    def test_names_come_and_go_with_the_boxes(self, boxes: NsBox, lan: Network):
        first = boxes.start(["sleep", "60"], name="first", net=lan, hostname="one.example")
        hosts = first.exec(["cat", "/etc/hosts"]).stdout
        assert f"{first.ip}\tfirst one.example\n" in hosts
        with boxes.start(["sleep", "60"], name="second", net=lan) as second:
            assert f"{second.ip}\tsecond\n" in first.exec(["cat", "/etc/hosts"]).stdout
            assert f"{first.ip}\tfirst one.example\n" in second.exec(["cat", "/etc/hosts"]).stdout
        assert first.exec(["cat", "/etc/hosts"]).stdout == hosts
        assert first.changes() == []

    def test_a_box_that_shares_a_members_network_knows_all_names(self, boxes: NsBox, lan: Network):
        with (
            boxes.start(["sleep", "60"], name="db", net=lan) as db,
            boxes.start(["sleep", "60"], name="beside", net=db) as beside,
            boxes.start(["sleep", "60"], net=lan, name="late"),
        ):
            names = db.exec(["cat", "/etc/hosts"], check=True).stdout
            assert "\tlate\n" in names
            last = boxes.run(["cat", "/etc/hosts"], net=beside, check=True)
            assert (last.stdout, len(last.changes)) == (names, 0)
            assert beside.exec(["cat", "/etc/hosts"]).stdout == names

    def test_ports_below_1024_are_for_every_user(self, boxes: NsBox, lan: Network):
        serve = "import os, socket; os.setuid(1000); socket.create_server(('', 80))"
        boxes.run([sys.executable, "-ISc", serve], net=lan, check=True)

    def test_one_that_ended_leaves_no_name(self, boxes: NsBox, lan: Network):
        first = boxes.start(["sleep", "60"], name="first", net=lan)
        ended = boxes.start(["true"], name="ended", net=lan)
        ended.wait(10)
        wait_until(lambda: "ended" not in first.exec(["cat", "/etc/hosts"]).stdout)
        assert list(lan.inspect()["Containers"]) == ["first"]

    def test_another_network_is_not_reached(self, boxes: NsBox, lan: Network):
        web = serve(boxes, "web", lan)
        stranger = boxes.start(["sleep", "60"], net=boxes.network())
        assert "unreachable" in ask(stranger, str(web.ip))
        assert "gaierror" in ask(stranger, "web")

    def test_the_hosts_network_is_not_reached_nor_has_it_any_of_this(self, boxes: NsBox):
        before = os.listdir("/sys/class/net")
        routes = Path("/proc/net/route").read_text(encoding="ascii")
        lan = boxes.network(subnet="10.99.7.0/28")
        web = serve(boxes, "web", lan)
        assert web.ip == "10.99.7.2"
        assert os.listdir("/sys/class/net") == before
        assert Path("/proc/net/route").read_text(encoding="ascii") == routes
        with socket.create_server(("127.0.0.1", 0)) as server:
            reached = web.exec(python(ASK.replace(", 7)", f", {server.getsockname()[1]})"), "127.0.0.1", "2"))
            assert "refused" in reached.stdout

    def test_a_small_subnet_has_few_addresses_and_gives_them_again(self, boxes: NsBox):
        tiny = boxes.network("tiny", subnet="10.99.8.0/30")
        for _ in range(2):
            with boxes.start(["sleep", "60"], name="only", net=tiny) as box:
                assert box.ip == "10.99.8.2"
                with pytest.raises(BoxFailed, match=r"network 'tiny': all addresses of 10.99.8.0/30 are taken"):
                    boxes.run(["true"], net=tiny)

    def test_a_box_with_networks_interface_cannot_reach_the_bridge_of_others(self, boxes: NsBox, lan: Network):
        result = boxes.run(["ls", "/sys/class/net"], net=lan)
        assert set(result.stdout.split()) >= {"lo", "eth0"}
        assert not [name for name in result.stdout.split() if name.startswith(("port", "nsbr"))]


class TestErrors:
    def test_an_unknown_network_is_told(self, boxes: NsBox, lan: Network):
        text = r"net='wan': there is no such network \(there are: 'lan'\); nsbox.network\('wan'\) makes it"
        with pytest.raises(BoxFailed, match=text):
            boxes.run(["true"], net="wan")

    def test_all_that_is_wrong_is_told_at_once(self, boxes: NsBox):
        with pytest.raises(SpecProblems) as caught:
            boxes.network("a b", subnet="10.0.0.1/24", rate="fast", delay="late", loss="200%")
        told = str(caught.value).splitlines()
        assert [line.partition("=")[0] for line in told] == [
            f"nsbox.network: {key}" for key in ("name", "subnet", "rate", "delay", "loss")
        ]
        assert all("(accepted: " in line for line in told)

    def test_an_address_of_the_hosts_is_refused(self, boxes: NsBox):
        with pytest.raises(SpecProblems, match="no box can have an address in"):
            boxes.network(subnet="127.0.0.0/8")

    def test_the_same_addresses_twice_are_refused(self, boxes: NsBox):
        boxes.network("one", subnet="10.99.0.0/16")
        with pytest.raises(BoxFailed, match=r"subnet='10.99.1.0/24': the network 'one' has addresses of it"):
            boxes.network("two", subnet="10.99.1.0/24")

    def test_a_name_is_found_again_but_not_as_another_network(self, boxes: NsBox, lan: Network):
        assert boxes.network("lan").subnet == lan.subnet
        assert boxes.networks == [lan]
        with pytest.raises(BoxFailed, match="there is a network 'lan' already, and it is another one"):
            boxes.network("lan", rate="1mbit")

    def test_one_in_use_is_not_removed(self, boxes: NsBox, lan: Network):
        with (
            boxes.start(["sleep", "60"], name="web", net=lan),
            pytest.raises(BoxFailed, match="the network 'lan' is in use by web"),
        ):
            lan.remove()
        lan.remove()
        with pytest.raises(BoxFailed, match="there is no such network"):
            lan.inspect()
        assert boxes.networks == []

    def test_a_box_that_is_not_in_it_is_told(self, boxes: NsBox, lan: Network):
        with pytest.raises(BoxFailed, match=r"network 'lan' has no box 'web' \(boxes in it: none\)"):
            lan.disconnect("web")


def test_runs_at_the_same_time_choose_other_subnets(boxes: NsBox, lan: Network):
    with started() as other:
        theirs = NsBox(other.connect, "/")
        try:
            assert theirs.network("lan").subnet not in {lan.subnet, boxes.network().subnet}
        finally:
            theirs.close()


def test_a_client_that_is_gone_takes_its_networks_along(warden: Warden, boxes: NsBox):
    gone = NsBox(warden.connect, "/")
    gone.network("short")
    gone.start(["sleep", "60"], net="short")
    gone.engine.close()

    def is_there() -> bool:
        try:
            return boxes.network("short") in boxes.networks[:-1]
        except BoxFailed:
            return True

    wait_until(lambda: not is_there())


def test_another_process_makes_interfaces_when_somebody_killed_it(warden: Warden, boxes: NsBox, lan: Network):
    boxes.run(["true"], net=lan, check=True)
    maker = process_of(warden, "nsbox-network")
    os.kill(maker, signal.SIGKILL)
    web = serve(boxes, "web", lan)
    client = boxes.start(["sleep", "60"], net=boxes.network())
    assert process_of(warden, "nsbox-network") != maker
    # It would keep the network alive.
    there = {os.readlink(f"/proc/{pid}/ns/net") for pid in (web.pid, client.pid, "self")}
    assert os.readlink(f"/proc/{process_of(warden, 'nsbox-network')}/ns/net") not in there


def test_an_interpreter_without_pyroute2_is_told(boxes: NsBox):
    code = (
        "import sys; sys.path.append(sys.argv[1]); sys.modules['pyroute2'] = None; "
        "from pytest_nsbox.warden.interfaces import run; run(int(sys.argv[2]), [])"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [sys.executable, "-I", "-S", "-c", code, str(Path(__file__).parents[2]), str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]):
            ours.send(marshal.dumps(("routes", [])))
            kind, text = marshal.loads(ours.recv(10_000))
            ours.shutdown(socket.SHUT_RDWR)
    assert kind == "failed"
    assert "finds no pyroute2 that works (" in text
    assert text.endswith("it has to be installed where pytest_nsbox is")


class TestLinks:
    def test_a_cut_link_is_between_two_boxes_alone(self, boxes: NsBox, lan: Network):
        one, two, three = (serve(boxes, name, lan) for name in ("one", "two", "three"))
        lan.cut(one, "two")
        assert "TimeoutError" in ask(one, str(two.ip), 0.2)
        assert "TimeoutError" in ask(two, str(one.ip), 0.2)
        assert ask(one, str(three.ip)) == one.ip
        assert ask(three, str(two.ip)) == three.ip
        lan.mend("two", one)
        assert ask(one, str(two.ip)) == one.ip

    def test_a_disconnected_box_keeps_its_connections(self, boxes: NsBox, lan: Network):
        web = serve(boxes, "web", lan)
        client = boxes.start(["sleep", "60"], net=lan)
        lan.disconnect(web)
        assert "TimeoutError" in ask(client, str(web.ip), 0.3)
        lan.connect(web)
        wait_until(lambda: ask(client, str(web.ip), 1) == client.ip)

    def test_who_asked_in_vain_is_answered_at_once_when_the_cable_is_in_again(self, boxes: NsBox, lan: Network):
        """The kernel asks for a neighbour once a second, and keeps what is sent until then."""
        web, other = serve(boxes, "web", lan), serve(boxes, "other", lan)
        lan.disconnect(web)
        for there in (str(web.ip), ipv6_of(lan, "web")):
            assert "TimeoutError" in ask(other, there, 0.05)
        for there in (str(other.ip), ipv6_of(lan, "other")):
            assert "TimeoutError" in ask(web, there, 0.05)
        lan.connect(web)
        for there in (str(web.ip), ipv6_of(lan, "web")):
            assert "Error" not in ask(other, there, 0.4)
        for there in (str(other.ip), ipv6_of(lan, "other")):
            assert "Error" not in ask(web, there, 0.4)

    def test_a_box_that_took_its_interface_down_is_connected_without_a_wait(self, boxes: NsBox, lan: Network):
        command = ["sh", "-c", "ip link set eth0 down && echo down && sleep 60"]
        down = boxes.start(command, net=lan, caps=["default", "net_admin"])
        wait_until(lambda: "down" in down.logs())
        begun = time.monotonic()
        lan.connect(down)
        assert time.monotonic() - begun < 1


class TestBoxesOfTests:
    def test_a_tests_box_joins_when_it_is_handed_out(self, warden: Warden, boxes: NsBox, lan: Network):
        web = serve(boxes, "web", lan)
        box = warden.acquire(Spec(net="lan", hostname="tester"))
        try:

            def ask_in_box() -> tuple[str, str]:
                with socket.create_connection((str(web.ip), 7), 5) as server:
                    return server.recv(100).decode(), socket.gethostbyname("web")

            own, found = run_in(box, ask_in_box)
            assert found == web.ip
            assert f"{own}\t{box.name} tester\n" in web.exec(["cat", "/etc/hosts"]).stdout
        finally:
            box.release()
        wait_until(lambda: "tester" not in web.exec(["cat", "/etc/hosts"]).stdout)

    def test_an_unknown_network_is_an_error_when_it_is_handed_out(self, warden: Warden):
        with pytest.raises(BoxFailed, match="net='lan': there is no such network"):
            warden.acquire(Spec(net="lan"))


def test_nothing_of_a_network_stays_after_the_warden_was_killed(warden: Warden):
    before = os.listdir("/sys/class/net")
    other = Warden.start(config())
    theirs = NsBox(other.connect, "/")
    try:
        box = theirs.start(["sleep", "60"], net=theirs.network(internal=False), publish={7: 0})
        namespace = os.readlink(f"/proc/{box.pid}/ns/net")
        os.kill(other.pid, 9)
        wait_until(lambda: not _somebody_in(namespace))
        wait_until(lambda: _is_refused(box.ports[7]))
        assert os.listdir("/sys/class/net") == before
    finally:
        theirs.engine.close()
        other.close()
    # What it left on disk the next one sweeps.
    with started():
        wait_until(lambda: len(list(Path(tempfile.gettempdir()).glob("nsbox-*"))) == 2)


def _somebody_in(namespace: str) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns" / "net") == namespace:
                return True
        except OSError:
            continue
    return False


def _is_refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
