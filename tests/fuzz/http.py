"""Does a request that policy forbids ever reach a server? Millions of streams, by hand: `python -m tests.fuzz.http`.

    generated packets -> the kernel's programs -> what of them passed -> real servers -> requests that they understood

Every request that a server understood must be one that policy allows, whichever way its path can be read. Needs root.
`--only N` runs script N of a seed and shows it. The last line is one JSON object with the counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from services.model.verdict import Direction
from tests.datapath.http_model import Header, Rule, meets
from tests.datapath.http_node import HttpNode
from tests.datapath.node import inside
from tests.fuzz.http_servers import Server, Understood, start_all
from tests.fuzz.http_streams import Generator
from tests.fuzz.http_wire import Received, Wire

RULES = (
    Rule("GET|HEAD|POST", "/ok(/.*)?"),
    Rule("POST", "/up"),
    Rule("GET", "/q[?]x=[0-9]+"),
    Rule("GET|POST", "/hosted", "a[.]example(:80)?"),
    Rule("OPTIONS", r"\*"),
    Rule("GET|POST", "/tagged", headers=(Header("X-Tag", "blue"),)),
    Rule("GET", "/token", "a[.]example", headers=(Header("X-Tag"), Header("X-Token", "t"))),
)
BATCH = 2000
ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")
UNRESERVED = re.compile(r"%(2[dDeE]|3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF]|7[eE])")


def views(request: Understood) -> set[str]:
    """The ways in which somebody behind the server might read the target."""
    target = ABSOLUTE.sub("", request.target, count=1)
    if not target.startswith(("/", "*")):
        target = "/" + target
    path, mark, query = target.partition("?")
    found = {UNRESERVED.sub(lambda m: unquote(m.group()), path), unquote(path, "latin-1")}
    if request.path is not None:
        found.add(request.path)
    return {view + mark + query for view in found}


def permitted(request: Understood, rules: Sequence[Rule] = RULES) -> bool:
    """Policy's answer to a request as a server understood it."""

    def allows(rule: Rule) -> bool:
        return (
            re.fullmatch(rule.method or ".*", request.method) is not None
            and all(re.fullmatch(rule.path or ".*", view, re.DOTALL) for view in views(request))
            and meets(rule, request.fields)
        )

    return any(allows(rule) for rule in rules)


@dataclass
class Bypass:
    """A forbidden request that a server understood."""

    number: int
    server: str
    request: Understood
    received: Received


@dataclass
class Result:
    counts: Counter[str] = field(default_factory=Counter)
    bypasses: list[Bypass] = field(default_factory=list)


@contextlib.contextmanager
def bench(
    folder: Path, objects: Path, rules: Sequence[Rule] = RULES, side: Direction = Direction.INGRESS
) -> Iterator[tuple[HttpNode, Wire, list[Server]]]:
    """A node under policy of the server or of the client, and the servers."""
    with contextlib.ExitStack() as stack:
        node = HttpNode(objects, side)
        stack.callback(node.close)
        node.rules(*rules)
        servers = start_all(folder)
        for server in servers:
            stack.callback(server.close)
        yield node, Wire(node), servers


def run(
    node: HttpNode, wire: Wire, servers: Sequence[Server], generator: Generator, numbers: range, result: Result
) -> None:
    """One batch."""
    batch: list[tuple[int, Received]] = []
    with inside(node.name):
        for number in numbers:
            script = generator.script(number)
            # Heads that come again are not read again (bpf/lib/http_memo.h): these come three times.
            for _ in range(2 if number % 4 == 0 else 0):
                wire.run_inside(script)
            received = wire.run_inside(script)
            if received.stream:
                batch.append((number, received))
    result.counts["streams"] += len(numbers)
    result.counts["streams of which something passed"] += len(batch)
    for server in servers:
        answers = server.understand([received for _, received in batch])
        for (number, received), requests in zip(batch, answers, strict=True):
            result.counts[f"requests understood by {server.name}"] += len(requests)
            bad = next((request for request in requests if not permitted(request)), None)
            if bad is not None:
                result.bypasses.append(Bypass(number, server.name, bad, received))


def show(bypass: Bypass, generator: Generator) -> None:
    """All that is needed to look into it."""
    print(f"\nscript {bypass.number}: {bypass.server} understood {bypass.request}")
    for segment in generator.script(bypass.number).segments:
        print(f"  {segment.offset:5} {'lost ' if segment.lost else ''}{segment.payload!r}")
    print(f"  received{' and closed' if bypass.received.closed else ''}: {bypass.received.stream!r}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--begin", type=int, default=0, help="number of the first stream")
    parser.add_argument("--streams", type=int, default=1_000_000)
    parser.add_argument("--only", type=int, help="run and show this one")
    parser.add_argument("--client", action="store_true", help="the rules are the client's, on egress")
    parser.add_argument("--most", type=int, default=20, help="bypasses after which to give up")
    options = parser.parse_args()
    generator, result, began = Generator(options.seed), Result(), time.monotonic()
    begin, end = options.begin, options.begin + options.streams
    if options.only is not None:
        begin, end = options.only, options.only + 1
    with (
        tempfile.TemporaryDirectory() as folder,
        bench(
            Path(folder),
            Path(folder) / "objects",
            side=Direction.EGRESS if options.client else Direction.INGRESS,
        ) as (node, wire, servers),
    ):
        for start in range(begin, end, BATCH):
            before = len(result.bypasses)
            run(node, wire, servers, generator, range(start, min(start + BATCH, end)), result)
            for bypass in result.bypasses[before:]:
                show(bypass, generator)
            if len(result.bypasses) >= options.most:
                break
            print(
                f"{result.counts['streams']:,} streams, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
            )
        if options.only is not None:
            print(generator.script(begin), wire.run(generator.script(begin)))
    print(json.dumps({"seed": options.seed, "bypasses": len(result.bypasses), **result.counts}))
    if result.bypasses:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
