"""Where a process listens: at no more of the machine's addresses than others need to reach it."""

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any

GLOO = "GLOO_SOCKET_IFNAME"
LOOPBACK = "lo"
SIOCGIFADDR = 0x8915  # linux/sockios.h
SocketAddress = tuple[socket.AddressFamily, Any]  # as `bind` takes it: host, port, ...


def own_addresses(host: str, port: int = 0) -> Iterator[SocketAddress]:
    """Those of a host's addresses that this machine has, with the port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return
    for family, kind, protocol, _, address in found:
        with closing(socket.socket(family, kind, protocol)) as probe:
            try:
                probe.bind((address[0], 0, *address[2:]))
            except OSError:
                continue
        yield family, address


def store_socket(host: str, port: int) -> socket.socket | None:
    """A socket that listens at the host's address alone, for the store of rank 0; None where that would keep
    others out, and all interfaces are needed.

    The host is loopback itself (localhost, 127.0.0.1: all ranks are on this machine), or stands for a single
    other address that is this machine's. A name for which this machine knows loopback alone, as of its own
    name in many an /etc/hosts, is another address elsewhere; one of several may be reached at any of them.

    Raises OSError: the port is taken.
    """
    addresses = list(dict.fromkeys(own_addresses(host, port)))
    loopback = [address for address in addresses if _is_loopback(str(address[1][0]))]
    others = [address for address in addresses if address not in loopback]
    if host == "localhost" or _is_loopback(host):
        others = sorted(loopback)[:1]  # IPv4 first
    if len(others) != 1:
        return None
    family, address = others[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False  # a name


def address_of(interface: str) -> str | None:
    """The IPv4 address of an interface, None without one."""
    request = struct.pack("256s", interface.encode()[:15])
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
        except OSError:
            return None
