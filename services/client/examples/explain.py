"""Ask a node's agent why a connection is allowed or denied, and which rules it looked at."""

from __future__ import annotations

import argparse

from services.client import Agent
from services.client.examples import _arguments
from services.common.pb.agent.v1 import agent_pb2


async def main(arguments: argparse.Namespace) -> None:
    """Print the answer of both directions."""
    connection = agent_pb2.Connection(
        source=agent_pb2.Peer(name=arguments.source),
        destination=agent_pb2.Peer(name=arguments.destination),
        protocol=6,
        port=arguments.port,
    )
    async with Agent(_arguments.target(arguments)) as agent:
        answer = await agent.explain(connection)
    print(f"{answer.source} -> {answer.destination}:{arguments.port}/TCP {'passes' if answer.passes else 'is denied'}")
    for direction in answer.directions:
        print(f"  {direction.direction} of {direction.subject}: {direction.answer.fate}")
        for considered in direction.considered:
            rule = considered.rule
            failed = f" (not: {', '.join(considered.failed)})" if considered.failed else ""
            print(f"    {rule.kind} {rule.namespace}/{rule.name} {rule.path}{failed}")


if __name__ == "__main__":
    parser = _arguments.parser(__doc__, "unix:///run/ciliate/agent.sock")
    parser.add_argument("source", help='"namespace/pod", an address, "world", "host"')
    parser.add_argument("destination")
    parser.add_argument("port", type=int)
    _arguments.run(main, parser.parse_args())
