"""What both ends tell a TCP socket: send at once, and notice a peer that vanished."""

from __future__ import annotations

import socket

#: A machine that vanishes is noticed after about two minutes without an answer:
#: seconds of silence before the first probe, between probes, and how many.
_IDLE_S, _INTERVAL_S, _PROBES = 60, 15, 4


def tune(peer: socket.socket) -> None:
    """Set the options of a connected socket; nothing for a Unix socket.

    Without TCP_NODELAY a small frame after another waits for an acknowledgement, which
    the other side may delay for 40 ms and more.
    """
    if peer.family == getattr(socket, "AF_UNIX", None):
        return
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE_S),
        ("TCP_KEEPINTVL", _INTERVAL_S),
        ("TCP_KEEPCNT", _PROBES),
    ):
        # Not every platform has all three; its own defaults serve there.
        option = getattr(socket, name, None)
        if option is not None:
            peer.setsockopt(socket.IPPROTO_TCP, option, value)
