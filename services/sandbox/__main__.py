"""`python -m services.sandbox NAME`: the supervisor of one sandbox, until told to go down.

Standard output carries one JSON line per step ({"step": ...}), then {"ready": true} or {"error": ...}: that is what
`ciliate sandbox up` shows while it waits.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys

from services.common.errors import CiliateError
from services.common.log import configure
from services.common.runner import run
from services.sandbox.control import ControlServer
from services.sandbox.state import DEFAULT_NAME
from services.sandbox.supervisor import Sandbox


def say(**fields: object) -> None:
    """Tell the starter; that it may have left is no reason to stop."""
    with contextlib.suppress(OSError):
        print(json.dumps(fields), flush=True)


async def supervise(name: str, nodes: int, routing_mode: str) -> None:
    """Bring a sandbox up, serve its control socket, take it down when asked to."""
    try:
        async with (
            Sandbox(name, nodes, lambda step: say(step=step), routing_mode) as sandbox,
            ControlServer(sandbox) as control,
        ):
            say(ready=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ended = asyncio.create_task(control.ended.wait(), name="down")
            watched = asyncio.create_task(sandbox.watch(), name="watch")
            try:
                done, _ = await asyncio.wait((ended, watched), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                ended.cancel()
                watched.cancel()
    except CiliateError as error:
        say(error=str(error))
        raise


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="ciliate-sandbox", description=__doc__)
    parser.add_argument("name", nargs="?", default=DEFAULT_NAME)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--routing-mode", choices=("tunnel", "native"), default="tunnel")
    arguments = parser.parse_args()
    configure("ciliate-sandbox", "info", json=False)
    return run(supervise(arguments.name, arguments.nodes, arguments.routing_mode))


if __name__ == "__main__":
    sys.exit(main())
