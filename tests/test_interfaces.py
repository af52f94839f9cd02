"""gloo or NCCL on an interface that other machines cannot reach: one line with the variable, at the start."""

import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from maskreid_dist.errors import UserError
from maskreid_dist.training import interfaces
from maskreid_dist.training.environment import Place
from maskreid_dist.training.interfaces import (
    Interface,
    check_interfaces,
    check_reach,
    gloo_interface,
    missing_interface,
)
from maskreid_dist.training.meeting import Meeting, Member
from nodes import ROOT, run_nodes, write_recipe

HERE = ["lo", "eth0", "eth1", "docker0"]


def said(members: Sequence[Member], own: Sequence[Interface]) -> list[str]:
    """What each of some ranks, as threads, says of where their gloo listens; empty for nothing."""
    size = len(members)
    store = TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)

    def rank(number: int) -> str:
        threading.current_thread().name = f"rank {number}"
        place = Place(number, members[number].local_rank, size)
        meeting = Meeting(place, store.clone(), 60.0)  # type: ignore[attr-defined]
        meeting.join(members[number])
        try:
            check_reach(meeting, own[number])
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(rank, range(size)))


def members(*networks: str) -> list[Member]:
    return [Member(f"node{network[-1]}", 0, 1, network) for network in networks]


def test_loopback_on_several_machines_is_one_line_on_all() -> None:
    nodes = members("boot/0", "boot/0", "boot/1")
    own = [Interface("127.0.1.1", "the host name resolves to it", "eth0")] * 3
    assert set(said(nodes, own)) == {
        "gloo takes 127.0.1.1, which other machines cannot reach: the host name resolves to it; name the "
        "interface of the machines' network (here eth0 leads to rank 0) in GLOO_SOCKET_IFNAME on every "
        "machine, for NCCL in NCCL_SOCKET_IFNAME"
    }
    own[2] = Interface(None, "GLOO_SOCKET_IFNAME names ib0")
    (line,) = set(said(nodes, own))
    assert line.startswith("ranks 0-1 on node0: gloo takes 127.0.1.1, which other")


@pytest.fixture
def loopback_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has no other address for certain."""
    monkeypatch.setattr(interfaces, "is_loopback", lambda interface: False)


@pytest.mark.usefixtures("loopback_counts")
def test_machines_that_reach_each_other_pass() -> None:
    own = [Interface(f"127.0.0.{rank + 1}", "", "") for rank in range(3)]
    assert said(members("boot/0", "boot/1", "boot/2"), own) == ["", "", ""]


@pytest.mark.usefixtures("loopback_counts")
def test_every_machine_is_tried_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[tuple[str, str]] = set()

    def answers(address: str, port: int, token: str) -> bool:
        asked.add((threading.current_thread().name, address))
        return address != "127.0.0.2"

    monkeypatch.setattr(interfaces, "_answers", answers)
    nodes = members("boot/0", "boot/1", "boot/1", "boot/2")
    addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.4", "127.0.0.3"]
    own = [Interface(address, "so it is", "") for address in addresses]
    (line,) = set(said(nodes, own))
    assert asked == {("rank 0", "127.0.0.2"), ("rank 1", "127.0.0.3"), ("rank 3", "127.0.0.1")}
    assert line.startswith(
        "gloo of rank 1 on node1 takes 127.0.0.2, which other machines cannot reach: so it is;"
    )


@pytest.mark.usefixtures("loopback_counts")
def test_a_machine_under_another_s_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with docker0, which is 172.17.0.1 everywhere: what answers is not the rank that was meant."""
    real = interfaces._answers
    ports = iter([0])

    def answers(address: str, port: int, token: str) -> bool:
        return real(address, port, "another" if next(ports, None) == 0 else token)

    monkeypatch.setattr(interfaces, "_answers", answers)
    own = [Interface("127.0.0.1", "the host name resolves to it", "")] * 2
    (line,) = set(said(members("boot/0", "boot/1"), own))
    assert (
        line.startswith("gloo of rank ") and " takes 127.0.0.1, which other machines cannot reach: " in line
    )
    assert "\n" not in line


def test_a_closed_port_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not interfaces._answers("127.0.0.1", port, "token")


def test_nothing_is_tried_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    meeting = Meeting(Place(0, 0, 2), None, 1.0)  # type: ignore[arg-type]
    meeting.members = members("boot/0", "boot/0")
    check_interfaces(meeting)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, None),
        ({"GLOO_SOCKET_IFNAME": "eth0"}, None),
        ({"GLOO_SOCKET_IFNAME": "eth0,eth1"}, None),
        (
            {"GLOO_SOCKET_IFNAME": "eth"},
            "GLOO_SOCKET_IFNAME names eth, which is not here; the interfaces here are lo,",
        ),
        ({"GLOO_SOCKET_IFNAME": "eth0,ib0"}, "GLOO_SOCKET_IFNAME names ib0"),
        ({"NCCL_SOCKET_IFNAME": "eth"}, None),
        ({"NCCL_SOCKET_IFNAME": "ib,=eth"}, "NCCL_SOCKET_IFNAME = ib,=eth leaves no interface"),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, "NCCL_SOCKET_IFNAME = =eth leaves no interface"),
        ({"NCCL_SOCKET_IFNAME": "=eth0"}, None),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, None),
        ({"NCCL_SOCKET_IFNAME": "^docker,eth,lo"}, "NCCL_SOCKET_IFNAME = ^docker,eth,lo leaves no interface"),
    ],
)
def test_interfaces_that_are_not_here(environment: dict[str, str], words: str | None) -> None:
    problem = missing_interface(environment, HERE)
    assert problem is None if words is None else problem is not None and problem.startswith(words)


def test_gloo_takes_what_the_host_name_resolves_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert interfaces.is_loopback(gloo_interface({}))
    monkeypatch.setattr(socket, "gethostname", lambda: "nowhere.invalid")
    nowhere = gloo_interface({"MASTER_ADDR": "127.0.0.1"})
    assert nowhere == Interface("127.0.0.1", "the host name resolves to no address of the machine", "")
    named = gloo_interface({"GLOO_SOCKET_IFNAME": "lo,eth9"})
    assert named == Interface("127.0.0.1", "GLOO_SOCKET_IFNAME names lo", "")
    assert gloo_interface({"GLOO_SOCKET_IFNAME": "eth99"}).address is None


def test_torch_still_takes_such_names() -> None:
    """What gloo_interface and missing_interface say of names, torch's gloo does."""
    dist.ProcessGroupGloo.create_device(interface="lo")
    with pytest.raises(RuntimeError, match="Unable to find address for: eth99"):
        dist.ProcessGroupGloo.create_device(interface="eth99")


@pytest.mark.parametrize("launcher", [None, pytest.param("deepspeed", marks=pytest.mark.faults)])
def test_two_launchers_say_it_and_leave(tmp_path: Path, launcher: str | None) -> None:
    """Two nodes that take each other for far, and gloo's interface for lo."""
    recipe = write_recipe(tmp_path)
    ended = run_nodes(
        [[recipe, "--runs", tmp_path / "runs"]] * 2,
        script=ROOT / "tests" / "far_training.py",
        launcher=tmp_path if launcher else None,
        variables={"GLOO_SOCKET_IFNAME": "lo"},
    )
    for node in ended:
        assert node.status == 2, node.output
        (line,) = node.errors
        assert line.startswith("gloo takes 127.0.0.1, which other machines cannot reach: GLOO_SOCKET_IFNAME")
        assert "Traceback" not in node.output
    assert not (tmp_path / "runs").exists()
