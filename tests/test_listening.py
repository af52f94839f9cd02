"""Where a training listens: no further than its other ranks are."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maskreid_dist.training import listening
from maskreid_dist.training.environment import Place, free_port
from maskreid_dist.training.listening import GLOO, LOOPBACK, address_of, own_addresses, store_socket
from maskreid_dist.training.meeting import open_store

ANY = {"00000000", "0" * 32}


def heard_at(port: int) -> set[str]:
    """The local addresses, as in /proc/net/tcp, of the sockets that listen at a port."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
            local, _, state = line.split()[1:4]
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                found.add(address)
    return found


def resolving(*addresses: str) -> Callable[..., Iterator[listening.SocketAddress]]:
    def resolve(host: str, port: int = 0) -> Iterator[listening.SocketAddress]:
        return iter([(socket.AF_INET, (address, port)) for address in addresses])

    return resolve


@pytest.mark.parametrize(
    ("host", "addresses", "bound"),
    [
        ("127.0.0.1", ("127.0.0.1",), "127.0.0.1"),
        ("localhost", ("127.0.0.1",), "127.0.0.1"),
        # These pretend that a loopback address is one of an interface.
        ("node0", ("127.9.9.9",), None),  # its own name in /etc/hosts: others know another address
        ("node0", (), None),  # of no interface here, as behind a service's address
    ],
)
def test_the_store_listens_where_the_first_address_says(
    monkeypatch: pytest.MonkeyPatch, host: str, addresses: tuple[str, ...], bound: str | None
) -> None:
    monkeypatch.setattr(listening, "own_addresses", resolving(*addresses))
    found = store_socket(host, 0)
    assert (found is None) == (bound is None)
    if found is not None:
        assert found.getsockname()[0] == bound
        found.close()


@pytest.mark.parametrize("addresses", [("127.8.8.8",), ("127.8.8.8", "127.9.9.9")])
def test_a_single_address_of_an_interface_is_taken(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    monkeypatch.setattr(listening, "own_addresses", resolving("127.0.1.1", *addresses))
    monkeypatch.setattr(listening, "_is_loopback", lambda host: host == "127.0.1.1")
    found = store_socket("node0", 0)
    assert (found is None) == (len(addresses) > 1)
    if found is not None:
        assert found.getsockname()[0] == "127.8.8.8"
        found.close()


def test_own_addresses_are_those_of_this_machine() -> None:
    assert [address for _, address in own_addresses("127.0.0.1", 7)] == [("127.0.0.1", 7)]
    assert list(own_addresses("198.51.100.7", 7)) == [] == list(own_addresses("no.such.host.invalid", 7))


def test_two_ranks_of_one_machine_meet_on_its_loopback_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    first = open_store(Place(0, 0, 2), 20.0)
    second = open_store(Place(1, 1, 2), 20.0)
    second.set("key", "value")
    assert first.get("key") == b"value"
    assert heard_at(port) == {"0100007F"}
    with pytest.raises(OSError, match="the port is taken") as caught:
        open_store(Place(0, 0, 2), 20.0)
    assert caught.value.errno == errno.EADDRINUSE and caught.value.filename == f"127.0.0.1:{port}"


def test_where_all_interfaces_are_needed_torch_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr("maskreid_dist.training.meeting.store_socket", lambda host, port: None)
    store = open_store(Place(0, 0, 2), 20.0)
    store.set("key", "value")
    assert heard_at(port) & ANY


ALONE = """
import os
from pathlib import Path
from maskreid_dist.training.environment import place_of_process, tell_libraries
from maskreid_dist.training.meeting import Meeting, open_store
from maskreid_dist.training.world import choose_device, start_world
import torch

place = place_of_process()
tell_libraries(place)
meeting = Meeting(place, open_store(place, 20.0), 20.0)
meeting.join()
world = start_world(meeting, choose_device(place))
world.barrier()
assert world.any_ranks(True, False) == [True, False]
torch.distributed.all_reduce(torch.ones(3, device=world.device))
open_files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
sockets = {os.readlink(file) for file in open_files if os.path.lexists(file)}
for table in ("tcp", "tcp6"):
    for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
            print("LISTENS", fields[1])
print("DONE")
"""


@pytest.mark.parametrize("launched", [False, True])
def test_one_process_listens_at_loopback_alone(launched: bool) -> None:
    """By the kernel's own table, once its process group is there and was used: gloo's ports, where only this
    machine reaches them, whatever interface the user has named for trainings of several machines."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    outward = [name for _, name in socket.if_nameindex() if name != LOOPBACK and address_of(name)]
    environment[GLOO] = outward[0] if outward else LOOPBACK
    if launched:
        environment |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0 and "DONE" in done.stdout, done.stdout + done.stderr
    heard = [line.split()[1].partition(":")[0] for line in done.stdout.splitlines() if "LISTENS" in line]
    assert set(heard) <= {"0100007F"}, done.stdout
