"""Tells those who come by TCP or UDP where they come from: `ADDRESS PORT ...` of the places to listen at."""

from __future__ import annotations

import socket
import sys
import threading


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp(address: str, port: int) -> None:
    with socket.create_server((address, port), family=family_of(address)) as listener:
        while True:
            connection, peer = listener.accept()
            threading.Thread(target=talk, args=(connection, peer[0]), daemon=True).start()


def talk(connection: socket.socket, peer: str) -> None:
    """The answer once, and for every further byte."""
    with connection:
        connection.sendall(peer.encode() + b"\n")
        while connection.recv(1):
            connection.sendall(peer.encode() + b"\n")


def udp(address: str, port: int) -> None:
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        while True:
            _, peer = sock.recvfrom(2000)
            sock.sendto(peer[0].encode(), peer)


def main() -> None:
    threads = [
        threading.Thread(target=serve, args=(address, int(sys.argv[1])))
        for address in sys.argv[2:]
        for serve in (tcp, udp)
    ]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main()
