"""Which sockets are doomed: a table, a random comparison with the obvious, and what happens when namespaces go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from services.agent.abi.layout import be16
from services.agent.abi.sock import SockEntry, SockKey
from services.agent.datapath.sock_sweep import SocketSweeper, doomed_sockets
from services.model.verdict import Protocol

Row = tuple[int, int, int, int, int]
"""(cookie, backend, port, protocol, namespace)"""


def raw(rows: Iterable[Row]) -> tuple[bytes, bytes]:
    keys = [SockKey(cookie=c, protocol=protocol) for c, _, _, protocol, _ in rows]
    values = [
        SockEntry(netns=netns, backend=b.to_bytes(16, "big"), backend_port=be16(port)) for _, b, port, _, netns in rows
    ]
    return b"".join(k.pack() for k in keys), b"".join(v.pack() for v in values)


def backend(number: int, port: int) -> bytes:
    return number.to_bytes(16, "big") + port.to_bytes(2, "big")


def test_only_udp_whose_backend_is_gone() -> None:
    rows = [
        (1, 10, 53, Protocol.UDP, 100),
        (2, 10, 54, Protocol.UDP, 100),  # another port of the same address
        (3, 11, 53, Protocol.UDP, 200),
        (4, 10, 53, Protocol.TCP, 100),
        (1, 11, 53, Protocol.UDP, 100),  # a second backend of the first socket
    ]
    found = doomed_sockets(*raw(rows), frozenset({backend(10, 54), backend(11, 53)}))
    assert {netns: set(sockets) for netns, sockets in found.items()} == {100: {(1, backend(10, 53))}}
    assert SockKey.unpack(found[100][1, backend(10, 53)]).cookie == 1
    assert doomed_sockets(b"", b"", frozenset()) == {}


ROWS = st.tuples(
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from((Protocol.TCP, Protocol.UDP)),
    st.integers(1, 3),
)


@given(
    st.lists(ROWS, max_size=20, unique_by=lambda row: row[:4]), st.sets(st.tuples(st.integers(0, 3), st.integers(1, 3)))
)
def test_agrees_with_the_obvious(rows: list[Row], live: set[tuple[int, int]]) -> None:
    found = doomed_sockets(*raw(rows), frozenset(backend(*each) for each in live))
    wanted = {
        (netns, cookie, backend(number, port))
        for cookie, number, port, protocol, netns in rows
        if protocol == Protocol.UDP and (number, port) not in live
    }
    assert {(netns, *each) for netns, sockets in found.items() for each in sockets} == wanted


class Sockets:
    """A map of sockets."""

    def __init__(self, rows: list[Row]) -> None:
        self._raw, self._count = raw(rows), len(rows)
        self.deleted: list[bytes] = []

    def chunks(self, count: int = 4096) -> Iterator[tuple[bytes, bytes, int]]:
        yield *self._raw, self._count

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        self.deleted += keys


async def test_nothing_is_asked_while_there_is_no_udp() -> None:
    asked: list[str] = []

    def live() -> frozenset[bytes]:
        asked.append("live")
        return frozenset()

    sweeper = SocketSweeper(Sockets([(1, 10, 80, Protocol.TCP, 1)]), live, lambda: asked.append("namespaces") or [])
    assert await sweeper.sweep() == 0
    assert not asked
