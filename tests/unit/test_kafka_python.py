"""The one thing that tests change in kafka-python, and nothing else."""

from __future__ import annotations

import selectors
import socket

from kafka.net.selector import NetworkSelector


def test_a_socket_that_the_loop_still_watches_is_closed_with_it() -> None:
    net = NetworkSelector()
    ours, theirs = socket.socketpair()
    other = socket.socket()

    async def waits() -> None:
        """Of a transport that has bytes to send."""

    task = waits()
    net.register_event(ours, selectors.EVENT_WRITE, task)
    net.close()
    net.close()
    assert (ours.fileno(), theirs.fileno() != -1, other.fileno() != -1) == (-1, True, True)
    for one in (theirs, other):
        one.close()
    task.close()
