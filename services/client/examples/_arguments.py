"""What every example is told: where the server is, and which certificate to show it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable

from services.client import Target, TlsFiles
from services.common.errors import CiliateError


def parser(description: str, address: str) -> argparse.ArgumentParser:
    """A parser with `--address` (default: `address`) and the certificate's three files."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--address", default=address, help="host:port or unix:///path (default: %(default)s)")
    made.add_argument("--tls-ca", help="PEM of the authority; without the three files the call is plaintext")
    made.add_argument("--tls-cert", help="PEM of our certificate, of role client")
    made.add_argument("--tls-key", help="PEM of its key")
    return made


def target(arguments: argparse.Namespace) -> Target:
    """The target that the arguments mean; ends the program where they are incomplete."""
    files = (arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    if any(files) and not all(files):
        sys.exit("error: --tls-ca, --tls-cert and --tls-key are all needed")
    return Target(arguments.address, TlsFiles(*files) if all(files) else None)


def run(main: Callable[[argparse.Namespace], Awaitable[None]], arguments: argparse.Namespace) -> None:
    """Run an example until it ends or is interrupted; an error of a call is one line."""

    async def root() -> None:
        await main(arguments)

    try:
        asyncio.run(root())
    except KeyboardInterrupt:
        pass
    except CiliateError as error:
        sys.exit(f"error: {error}")
