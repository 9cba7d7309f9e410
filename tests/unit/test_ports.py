"""Ports that local servers are given."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from clickwake.local import process

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_port_is_free_and_no_connection_that_goes_out_can_take_it() -> None:
    port = process.free_port()
    assert port in process.PORTS and process.port_is_free(port)
    if EPHEMERAL.exists():
        assert port < int(EPHEMERAL.read_text().split()[0])


def test_the_one_that_is_preferred_is_given_unless_something_listens_there() -> None:
    port = process.free_port()
    assert process.free_port(port) == port
    with socket.create_server((process.LOOPBACK, port)):
        assert process.free_port(port) != port


def test_where_none_is_free_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "port_is_free", lambda port: False)
    with pytest.raises(process.StartError, match="none of 100 ports from 20000 to 32767 is free"):
        process.free_port()
