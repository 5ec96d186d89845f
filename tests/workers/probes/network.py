"""Reaches out."""

from __future__ import annotations

import socket

from tests.workers.probes.registry import probe


@probe()
def connects_by_tcp(scene):
    with socket.create_connection(("127.0.0.1", scene["port"]), timeout=2):
        return "connected"


@probe()
def listens_by_tcp(scene):
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()


@probe()
def connects_by_tcp6(scene):
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM):
        return "made"


@probe()
def sends_by_udp(scene):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return s.sendto(b"secret", ("127.0.0.1", scene["port"]))


@probe()
def connects_by_unix_socket(scene):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(scene["unix"])
        return "connected"


@probe()
def connects_by_abstract_socket(scene):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f"\0{scene['abstract']}")
        return "connected"


@probe()
def asks_netlink(scene):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        s.bind((0, 0))
        return "bound"


@probe(root=True)
def sends_raw_packets(scene):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 255):
        return "made"


@probe()
def makes_a_socket_pair(scene):
    for end in socket.socketpair():
        end.close()
    return "made"


@probe()
def resolves_a_name(scene):
    return socket.getaddrinfo("localhost", 80, proto=socket.IPPROTO_TCP)[0][4]
