"""`ciliate-agent`: read the configuration, run the app."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys

# Peers speak TLS 1.3 or not at all: gRPC has no switch for that, but of TLS 1.2 this leaves only a cipher with
# pre-shared keys, which nobody has. Read when gRPC is loaded, hence before everything else.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-CHACHA20-POLY1305")

from services.agent.app import run as run_agent
from services.agent.config import Config
from services.common import runner

COMMANDS = {
    "preflight": "services.agent.preflight.__main__",
    "cleanup": "services.agent.cleanup",
    "check-config": "services.agent.check_config",
    "mount-bpffs": "services.agent.datapath.bpffs",
}
"""What the program does instead of running: `ciliate-agent cleanup`. Each has a `main(arguments)`."""


async def run(config: Config) -> None:
    """Be the node's network, or only watch another one's."""
    if config.observe_only:
        from services.agent.observe_only import run as watch

        await watch(config)
    else:
        await run_agent(config)


def main() -> int:
    """Run until told to stop; returns the exit code."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        return int(importlib.import_module(COMMANDS[sys.argv[1]]).main(sys.argv[2:]))
    return runner.main("ciliate-agent", Config, run, sys.argv[1:], asyncio.new_event_loop)


if __name__ == "__main__":
    sys.exit(main())
