"""Whether the ranks of several machines can reach each other where gloo and NCCL will try to.

Both take an interface by themselves: gloo that of the address that the host name resolves to, often
127.0.0.1, and then waits minutes for connections that cannot come. So it is tried first: a rank of each
machine listens at the address that its gloo takes, and one of the next machine connects.
"""

import ipaddress
import os
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from maskreid_dist.errors import UserError
from maskreid_dist.training.listening import GLOO, address_of, own_addresses
from maskreid_dist.training.meeting import Meeting

NCCL = "NCCL_SOCKET_IFNAME"
LOOPBACK = "127.0.0.1"
CONNECT_S = 10.0


@dataclass(frozen=True)
class Interface:
    """Where gloo of a rank listens. `address` None: unknown (an interface without an IPv4 address)."""

    address: str | None
    chosen_by: str  # for a line
    reaches_first: str = ""  # the interface that leads to rank 0, as far as known


def check_interfaces(meeting: Meeting) -> None:
    """Raise UserError, the same on every rank, where ranks of several machines would not reach each other,
    with the variable that helps. All ranks take part; nothing is tried where all are on one machine."""
    if len(_leaders(meeting)) < 2:
        return
    meeting.refuse(missing_interface(os.environ, interface_names()))
    check_reach(meeting, gloo_interface(os.environ))


def check_reach(meeting: Meeting, own: Interface) -> None:
    """As check_interfaces, by where each rank's gloo listens. All ranks take part."""
    leaders = _leaders(meeting)
    rank = meeting.place.rank
    meeting.refuse(f"gloo takes {_unreachable(own)}" if is_loopback(own) else None)
    token = secrets.token_hex(8)
    with _listening(own.address if rank in leaders else None, token) as port:
        doors = meeting.gather((own.address, port, token, _unreachable(own)))
        lost = None
        if rank in leaders:
            other = leaders[(leaders.index(rank) + 1) % len(leaders)]
            address, port_there, token_there, _ = doors[other]
            if address is not None and port_there and not _answers(address, port_there, token_there):
                lost = other
        all_lost = sorted(other for other in meeting.gather(lost) if other is not None)
    if all_lost:
        raise UserError(f"gloo of {meeting.who(all_lost)} takes {doors[all_lost[0]][3]}")


def gloo_interface(environment: Mapping[str, str]) -> Interface:
    """Where torch's gloo listens: at the first interface that GLOO_SOCKET_IFNAME names, else at the first
    address of the host name that this machine has (ProcessGroupGloo::createDefaultDevice)."""
    towards = _towards(environment.get("MASTER_ADDR", LOOPBACK))
    if named := environment.get(GLOO):
        name = named.split(",")[0]
        return Interface(address_of(name), f"{GLOO} names {name}", towards)
    host = socket.gethostname()
    found = next(own_addresses(host), None)
    if found is None:
        return Interface(LOOPBACK, "the host name resolves to no address of the machine", towards)
    return Interface(str(found[1][0]), "the host name resolves to it", towards)


def is_loopback(interface: Interface) -> bool:
    address = interface.address
    return address is not None and ipaddress.ip_address(address.partition("%")[0]).is_loopback


def missing_interface(environment: Mapping[str, str], present: Sequence[str]) -> str | None:
    """What is wrong with the interfaces that the user names: for gloo names, for NCCL beginnings, or
    `=name`, or `^not`."""
    here = f"the interfaces here are {', '.join(present)}"
    for name in filter(None, environment.get(GLOO, "").split(",")):
        if name not in present:
            return f"{GLOO} names {name}, which is not here; {here}"
    named = environment.get(NCCL, "")
    exact, but = named.startswith("="), named.startswith("^")
    parts = [part for part in named.removeprefix("^").removeprefix("=").split(",") if part]
    fits = [
        name for name in present if any(name == part if exact else name.startswith(part) for part in parts)
    ]
    if parts and not (set(present) - set(fits) if but else fits):
        return f"{NCCL} = {named} leaves no interface; {here}"
    return None


def interface_names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _leaders(meeting: Meeting) -> list[int]:
    """The first rank of each network."""
    first: dict[str, int] = {}
    for rank, member in enumerate(meeting.members):
        first.setdefault(member.network or member.host, rank)
    return list(first.values())


def _unreachable(own: Interface) -> str:
    """For a line; the same on all machines of a kind, so that it is said once."""
    example = f" (here {own.reaches_first} leads to rank 0)" if own.reaches_first else ""
    return (
        f"{own.address}, which other machines cannot reach: {own.chosen_by}; name the interface of the "
        f"machines' network{example} in {GLOO} on every machine, for NCCL in {NCCL}"
    )


@contextmanager
def _listening(address: str | None, token: str) -> Iterator[int | None]:
    """A port at an address where whoever connects gets the token; None where there is none."""
    if address is None:
        yield None
        return
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with closing(socket.create_server((address, 0), family=family)) as server:
        server.settimeout(0.2)
        ended = threading.Event()

        def answer() -> None:
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    continue
                with closing(connection):
                    connection.sendall(token.encode())

        thread = threading.Thread(target=answer, name="maskreid interface", daemon=True)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            ended.set()
            thread.join()


def _answers(address: str, port: int, token: str) -> bool:
    """Whether that rank is there, and not another machine, or this one, under the same address."""
    try:
        with closing(socket.create_connection((address, port), timeout=CONNECT_S)) as connection:
            return connection.recv(64, socket.MSG_WAITALL) == token.encode()
    except OSError:
        return False


def _towards(host: str) -> str:
    """The interface through which this machine reaches a host; nothing is sent. Empty where unknown."""
    try:
        found = socket.getaddrinfo(host, 9, socket.AF_INET, socket.SOCK_DGRAM)
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
            probe.connect(found[0][4])
            address = str(probe.getsockname()[0])
    except OSError:
        return ""
    name = next((name for name in interface_names() if address_of(name) == address), None)
    return name if name and not address.startswith("127.") else ""
