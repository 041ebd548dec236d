"""Ports that are really free, and that no outgoing connection is given by the kernel."""

from __future__ import annotations

import socket

import pytest

from cluster.errors import TenfoldError
from cluster.local import free_ports as ports
from cluster.local.cluster_file import HOST


def test_ports_are_distinct_free_and_not_ephemeral() -> None:
    found = ports.free_ports(20)
    assert len(set(found)) == 20
    assert all(ports.LOWEST <= port < ports.ephemeral_low() for port in found)
    assert all(map(ports.is_free, found))


@pytest.mark.parametrize("option", [None, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_someone_listens_on_is_taken(option: int | None) -> None:
    with socket.socket() as listener:
        if option is not None:
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind((HOST, 0))
        listener.listen()
        assert not ports.is_free(listener.getsockname()[1])
    assert ports.is_free(ports.free_ports(1)[0])


def test_a_port_whose_connections_only_wait_to_end_is_free() -> None:
    """A node that was restarted finds its own old connections in TIME_WAIT."""
    port = ports.free_ports(1)[0]
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
        with socket.create_connection((HOST, port)) as peer:
            served, _ = listener.accept()
            served.close()  # the server closes first, so the TIME_WAIT is on its side
            assert peer.recv(1) == b""
    assert ports.is_free(port)


def test_what_is_to_be_avoided_is_avoided() -> None:
    low = ports.ephemeral_low()
    keep = ports.free_ports(3)
    with pytest.raises(TenfoldError, match="only 3 of 4 ports are free"):
        ports.free_ports(4, avoid=set(range(1024, low)) - set(keep))
    assert sorted(ports.free_ports(3, avoid=set(range(1024, low)) - set(keep))) == sorted(keep)
    assert ports.free_ports(0) == []
