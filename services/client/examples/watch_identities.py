"""Follow the cluster's identities and addresses, over restarts of the identity service."""

from __future__ import annotations

import argparse

from services.client import Identities, InSync
from services.client.examples import _arguments
from services.model.objects import IdentityDeleted, IdentityUpserted, IpDeleted, IpUpserted


async def main(arguments: argparse.Namespace) -> None:
    """Print changes until interrupted, or what is there with `--once`."""
    async with Identities(_arguments.target(arguments)) as service:
        watch = service.watch("example", lambda problem: print(f"-- {problem}") if problem else None)
        async for change in watch.changes():
            match change:
                case IdentityUpserted(identity=identity):
                    print(f"identity {identity.id}: {', '.join(identity.labels.texts())}", flush=True)
                case IdentityDeleted(id=number):
                    print(f"identity {number} is gone", flush=True)
                case IpUpserted(entry=entry):
                    who = f"{entry.namespace}/{entry.pod}" if entry.pod else "-"
                    print(f"address {entry.prefix}: {who}, identity {entry.identity}, node {entry.node}", flush=True)
                case IpDeleted(prefix=prefix):
                    print(f"address {prefix} is gone", flush=True)
                case InSync():
                    print(f"-- in sync: {len(watch.identities)} identities, {len(watch.entries)} addresses", flush=True)
                    if arguments.once:
                        return


if __name__ == "__main__":
    parser = _arguments.parser(__doc__, "127.0.0.1:4250")
    parser.add_argument("--once", action="store_true", help="end when everything that is there has been told")
    _arguments.run(main, parser.parse_args())
