"""A client that counts every failure: runs inside a pod, as a script, without anything but the standard library.

    python load.py ADDRESS PORT --requests N [--until FILE] [--count FILE] [--kept K] [--short S] [--per-connection R]

K workers keep their connections for R requests each, S workers make one for every request, all at once, until N
requests were made and FILE is there (the other FILE says how many there were so far). A request failed when it was not
answered with 200 and the whole body within the time limit: refused, reset, closed early, late. Nothing is ever tried
again. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import time
from collections import Counter
from dataclasses import dataclass, field

TIMEOUT_S = 10.0


@dataclass
class Tally:
    """What happened."""

    ok: int = 0
    connections: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    servers: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    @property
    def requests(self) -> int:
        return self.ok + sum(self.failures.values())


class Client:
    """Workers that share a tally."""

    def __init__(self, address: str, port: int, requests: int, until: str, count: str, per_connection: int) -> None:
        self._address, self._port, self._until, self._per_connection = address, port, until, per_connection
        self._count = count
        self._wanted = requests
        self._next_look, self._finished = 0.0, not until
        self.tally = Tally()

    def _over(self) -> bool:
        now = time.monotonic()
        if not self._finished and now >= self._next_look:
            self._next_look, self._finished = now + 0.05, os.path.exists(self._until)
            if self._count:
                with open(f"{self._count}.new", "w", encoding="ascii") as file:
                    file.write(str(self.tally.requests))
                os.replace(f"{self._count}.new", self._count)
        return self._finished and self.tally.requests >= self._wanted

    async def work(self, requests: int) -> None:
        """Make connections of so many requests each until all is done."""
        while not self._over():
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(self._address, self._port)
            except (OSError, TimeoutError) as error:
                self.tally.failures[f"connect: {type(error).__name__}"] += 1
                continue
            self.tally.connections += 1
            try:
                for number in range(requests):
                    last = number + 1 == requests or self._over()
                    if not await self._request(reader, writer, last=last) or last:
                        break
            finally:
                writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, last: bool) -> bool:
        started = time.monotonic()
        connection = "close" if last else "keep-alive"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                writer.write(f"GET /load HTTP/1.1\r\nHost: load\r\nConnection: {connection}\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                body = await reader.readexactly(int(fields[b"content-length"]))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, KeyError) as error:
            self.tally.failures[f"request: {type(error).__name__}"] += 1
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            self.tally.failures[head.split(b"\r\n")[0].decode(errors="replace")] += 1
            return False
        self.tally.ok += 1
        self.tally.servers[body.split(b"Server name: ")[1].split(b"\n")[0].decode()] += 1
        self.tally.slowest_s = max(self.tally.slowest_s, time.monotonic() - started)
        return fields.get(b"connection") != b"close"


async def run(options: argparse.Namespace) -> Tally:
    """All workers until they are done."""
    client = Client(
        options.address, options.port, options.requests, options.until, options.count, options.per_connection
    )
    async with asyncio.TaskGroup() as tasks:
        for _ in range(options.kept):
            tasks.create_task(client.work(options.per_connection))
        for _ in range(options.short):
            tasks.create_task(client.work(1))
    return client.tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--until", default="")
    parser.add_argument("--count", default="")
    parser.add_argument("--kept", type=int, default=8)
    parser.add_argument("--short", type=int, default=4)
    parser.add_argument("--per-connection", type=int, default=100)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    started = time.monotonic()
    tally = asyncio.run(run(options))
    seconds = time.monotonic() - started
    print(
        json.dumps(
            {
                "requests": tally.requests,
                "failed": sum(tally.failures.values()),
                "failures": tally.failures,
                "connections": tally.connections,
                "servers": tally.servers,
                "seconds": round(seconds, 2),
                "per_s": round(tally.requests / seconds),
                "slowest_ms": round(tally.slowest_s * 1000, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
