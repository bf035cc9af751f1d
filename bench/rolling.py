"""A Deployment is updated again and again under load: how many of 100,000 requests fail?

Three real nginx pods behind a Service on two nodes, a client pod with kept and short connections (`tests/e2e/load.py`,
which never tries again), and rolling updates one after the other until the client is done. Flows are on.

    requests, failed, failures   counted by the client: refused, reset, closed early, late (10 s), not 200, half a body
    updates                      complete rolling updates meanwhile
    servers                      different pods that answered
    slowest_ms, per_s            of the client

The last line is one JSON object; exit status 1 where a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from services.sandbox.manifests import parse
from services.sandbox.supervisor import Sandbox
from tests.e2e.test_under_load import OBJECTS, Load


async def measure(requests: int) -> dict[str, Any]:
    """The figures; a sandbox for the while."""
    with tempfile.TemporaryDirectory() as folder:
        async with Sandbox(f"bench-{os.getpid()}", nodes=2) as sandbox:
            sandbox.apply(parse(OBJECTS, "objects"))
            await sandbox.wait_ready(60)
            load = Load(sandbox, Path(folder), requests, seconds=280)
            updates = 0
            while not load.enough():
                updates += 1
                version = f"version: number{updates}"
                sandbox.apply(parse(OBJECTS.replace("version: first", version), "objects"))
                await sandbox.wait_ready(60)
                print(f"{updates} updates, {load.progress()} requests", file=sys.stderr)
            found = await load.end()
    return {"bench": "rolling", **found, "updates": updates, "servers": len(found["servers"])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests, for trying the bench itself")
    figures = asyncio.run(measure(10_000 if parser.parse_args().quick else 100_000))
    print(json.dumps(figures))
    return 1 if figures["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
