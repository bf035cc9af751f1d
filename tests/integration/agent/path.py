"""Runs in pods: what gets through a path, and what its ends learn of it.

`serve`, or `probe ADDRESS`, which prints one JSON line.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

PORT = 7100
SIZE = 1_000_000
IP_MTU, IP_MTU_DISCOVER, IPV6_MTU, IPV6_MTU_DISCOVER, DO = 14, 10, 24, 23, 2


def options(family: int) -> tuple[int, int, int]:
    if family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, IPV6_MTU, IPV6_MTU_DISCOVER
    return socket.IPPROTO_IP, IP_MTU, IP_MTU_DISCOVER


def serve() -> None:
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.bind(("::", PORT))

    def echo() -> None:
        while True:
            data, sender = udp.recvfrom(65536)
            udp.sendto(str(len(data)).encode(), sender)

    threading.Thread(target=echo, daemon=True).start()
    with socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                left = SIZE
                while left and (data := connection.recv(min(left, 1 << 20))):
                    left -= len(data)
                # The other way as well.
                connection.sendall(bytes(SIZE - left))


def tcp(address: str, family: int) -> dict[str, float]:
    level, mtu, _ = options(family)
    started = time.monotonic()
    with socket.create_connection((address, PORT), timeout=20) as connection:
        connection.sendall(bytes(SIZE))
        got = 0
        while got < SIZE:
            got += len(connection.recv(1 << 20))
        return {
            "tcp_bytes": got,
            "tcp_seconds": time.monotonic() - started,
            "tcp_mtu": connection.getsockopt(level, mtu),
        }


def udp(address: str, family: int) -> dict[str, object]:
    """A datagram as large as the interface lets, and not to be cut: smaller and smaller until one arrives."""
    level, mtu, discover = options(family)
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(level, discover, DO)
        sock.settimeout(0.5)
        sock.connect((address, PORT))
        for _ in range(6):
            size = sock.getsockopt(level, mtu) - (48 if family == socket.AF_INET6 else 28)
            try:
                sock.send(bytes(size))
                if int(sock.recv(100)) == size:
                    return {"udp": "received", "udp_mtu": sock.getsockopt(level, mtu)}
            except (TimeoutError, OSError):
                continue
    return {"udp": "lost", "udp_mtu": 0}


def main() -> None:
    if sys.argv[1] == "serve":
        serve()
    family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
    for _ in range(50):
        try:
            socket.create_connection((sys.argv[2], PORT), timeout=0.2).close()
            break
        except OSError:
            time.sleep(0.05)
    # UDP first: what TCP learns is remembered for the address.
    print(json.dumps({**udp(sys.argv[2], family), **tcp(sys.argv[2], family)}))


if __name__ == "__main__":
    main()
