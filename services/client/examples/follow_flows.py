"""Follow dropped flows of a cluster, over restarts of the relay, with the policy that decided."""

from __future__ import annotations

import argparse

from services.client import Flows, FlowSeen, FlowsLost, Interrupted
from services.client.examples import _arguments
from services.common.pb.flow import flow_pb2


def line(seen: FlowSeen) -> str:
    """One dropped flow for people."""
    flow = seen.flow
    denied = [policy.name for policy in (*flow.ingress_denied_by, *flow.egress_denied_by)]
    reason = flow_pb2.DropReason.Name(flow.drop_reason_desc)
    return f"{seen.time:%H:%M:%S} {party(flow.source)} -> {party(flow.destination)} {reason} {', '.join(denied)}"


def party(endpoint: flow_pb2.Endpoint) -> str:
    """A pod by its name, others by their labels."""
    return f"{endpoint.namespace}/{endpoint.pod_name}" if endpoint.pod_name else ",".join(endpoint.labels)


async def main(arguments: argparse.Namespace) -> None:
    """Print flows until interrupted, or `--count` of them."""
    dropped = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])
    told = 0
    async with Flows(_arguments.target(arguments)) as relay:
        await relay.status()  # a wrong address or certificate is an error now; later outages are waited for
        async for item in relay.follow([dropped]):
            match item:
                case FlowSeen():
                    print(line(item), flush=True)
                    told += 1
                case FlowsLost(node=node, count=count, source=source):
                    print(f"-- {count} flows of {node} were lost ({source})", flush=True)
                case Interrupted(problem=problem):
                    print(f"-- interrupted, trying again: {problem}", flush=True)
            if arguments.count and told >= arguments.count:
                return


if __name__ == "__main__":
    parser = _arguments.parser(__doc__, "127.0.0.1:4245")
    parser.add_argument("--count", type=int, default=0, help="end after so many flows")
    _arguments.run(main, parser.parse_args())
