"""A wire that takes time: hands every frame of one network interface on to another, both ways, after a delay.

Needs Python alone and CAP_NET_RAW. Frames keep what the kernel noted about them (checksums to come, segments), so
that large ones pass as they are. Arguments: both interfaces, and the delay in seconds.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque

_EVERY_PROTOCOL = 3  # ETH_P_ALL
_SOL_PACKET, _PACKET_VNET_HDR, _OUTGOING = 263, 15, 4
_LARGEST = 1 << 17


def wire(interface: str) -> socket.socket:
    """Return a socket that gets every frame that arrives at an interface, and sends frames from there."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERY_PROTOCOL))
    opened.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    opened.bind((interface, 0))
    return opened


def main() -> None:
    first, second, delay = wire(sys.argv[1]), wire(sys.argv[2]), float(sys.argv[3])
    other = {first: second, second: first}
    under_way: deque[tuple[float, socket.socket, bytes]] = deque()
    print("ready", flush=True)
    while True:
        wait = max(under_way[0][0] - time.monotonic(), 0) if under_way else None
        for arrived in select.select([first, second], [], [], wait)[0]:
            try:
                frame, sender = arrived.recvfrom(_LARGEST)
            except OSError:  # the interface has gone down; its frames come again when it is up
                continue
            if sender[2] != _OUTGOING:
                under_way.append((time.monotonic() + delay, other[arrived], frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, out, frame = under_way.popleft()
            try:
                out.send(frame)
            except OSError:  # the interface is down: the frame is lost, as on a wire that is cut
                continue


if __name__ == "__main__":
    main()
