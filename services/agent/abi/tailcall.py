"""Tail calls (`bpf/lib/tailcall.h`): slots of the program array and the programs that fill them."""

from __future__ import annotations

from enum import IntEnum


class TailCall(IntEnum):
    """`enum tail_call`; the program's name is the member's, in lower case, without `TAIL_`."""

    TAIL_INGRESS = 0
    TAIL_HTTP_ENTRY = 1
    TAIL_HTTP_PARSE = 2
    TAIL_HTTP_DENY = 3
    TAIL_HTTP_REPLY = 4
    TAIL_HOST_POLICY = 5
    TAIL_NAT_IN = 6
    TAIL_NAT_OUT = 7
    TAIL_REFUSE = 8
    TAIL_DNS_QUERY = 9
    TAIL_DNS_ANSWER = 10
    TAIL_DNS_RECORDS = 11
    TAIL_DNS_LEARN = 12
    TAIL_TLS_HELLO = 13
    TAIL_NAMED = 14
    TAIL_FORWARD = 15
    TAIL_LEAVE = 20
    TAIL_NORTH_SOUTH = 16
    TAIL_NAT_FORWARD = 17
    TAIL_DSR_LEARN = 18
    TAIL_DSR_GENEVE = 24
    TAIL_DNS_STREAM_ASK = 21
    TAIL_DNS_STREAM_HEAR = 22
    TAIL_TOO_LARGE = 23
    TAIL_DNS_STREAM_REFUSE = 19

    @property
    def program(self) -> str:
        """The C function behind the slot."""
        return self.name.removeprefix("TAIL_").lower()
