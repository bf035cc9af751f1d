"""Asking a DNS server from inside a pod, and connecting to what it answered, as fast as one can."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass

import dns.exception
import dns.message
import dns.rcode

from services.sandbox.kubelet import Kubelet
from services.sandbox.probes import CLOSED, NO_ANSWER

SECONDS = 1.5
PORT = 53


@dataclass(frozen=True, slots=True)
class Named:
    """What a question came to: `text` is the addresses, "REFUSED", "no answer", ...; `seconds` it took."""

    text: str
    seconds: float


async def ask(kubelet: Kubelet, pod_netns: str, server: str, name: str, *, tcp: bool = False) -> Named:
    """Ask for the IPv4 addresses of a name, by UDP or TCP."""
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with await kubelet.socket_in(pod_netns, kind=kind) as asking:
        started = time.monotonic()
        try:
            async with asyncio.timeout(SECONDS):
                text = await _exchange(asking, server, name, tcp=tcp)
        except TimeoutError:
            text = NO_ANSWER
        except OSError:
            text = CLOSED
        return Named(text, time.monotonic() - started)


async def _exchange(asking: socket.socket, server: str, name: str, *, tcp: bool) -> str:
    loop = asyncio.get_running_loop()
    question = dns.message.make_query(name, "A")
    wire = question.to_wire()
    await loop.sock_connect(asking, (server, PORT))
    await loop.sock_sendall(asking, len(wire).to_bytes(2, "big") + wire if tcp else wire)
    raw = await loop.sock_recv(asking, 4096)
    if not raw:
        return CLOSED
    try:
        answer = dns.message.from_wire(raw[2:] if tcp else raw)
    except dns.exception.DNSException as error:
        return f"malformed: {error}"
    if not question.is_response(answer):
        return "an answer to another question"
    addresses = [item.address for rrset in answer.answer for item in rrset if hasattr(item, "address")]
    return ", ".join(addresses) or dns.rcode.to_text(answer.rcode())


async def connects(kubelet: Kubelet, pod_netns: str, address: str, port: int, seconds: float) -> float | None:
    """How long a TCP handshake took; None if it took longer than `seconds`. Below a second there is one SYN only."""
    with await kubelet.socket_in(pod_netns) as connecting:
        started = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().sock_connect(connecting, (address, port))
        except (OSError, TimeoutError):
            return None
        return time.monotonic() - started
