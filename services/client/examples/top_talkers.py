"""Who sent most bytes to whom in the last minutes: stored connections with their counters."""

from __future__ import annotations

import argparse
import collections
import datetime

from services.client import Flows, FlowSeen
from services.client.examples import _arguments
from services.client.examples.follow_flows import party
from services.common.pb.details.v1 import details_pb2


async def main(arguments: argparse.Namespace) -> None:
    """Print the ten heaviest pairs."""
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=arguments.minutes)
    sent: collections.Counter[tuple[str, str]] = collections.Counter()
    async with Flows(_arguments.target(arguments)) as relay:
        async for item in relay.query(since=since, details=True):
            # A connection's end carries its totals.
            if isinstance(item, FlowSeen) and item.details and item.details.kind == details_pb2.FlowDetails.CLOSE:
                sent[party(item.flow.source), party(item.flow.destination)] += item.details.bytes
    for (source, destination), count in sent.most_common(10):
        print(f"{count:>12} bytes  {source} -> {destination}")


if __name__ == "__main__":
    parser = _arguments.parser(__doc__, "127.0.0.1:4245")
    parser.add_argument("--minutes", type=float, default=5)
    _arguments.run(main, parser.parse_args())
