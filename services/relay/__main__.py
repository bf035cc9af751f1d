"""`ciliate-relay`, `python -m services.relay`."""

from __future__ import annotations

import sys

from services.common.config import load
from services.common.errors import CiliateError
from services.common.log import configure
from services.common.runner import run as run_process
from services.relay.app import run
from services.relay.config import Config


def main() -> int:
    """Read the configuration, serve, return the exit code."""
    try:
        config = load(Config, sys.argv[1:], process="ciliate-relay")
    except CiliateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    configure("ciliate-relay", config.log_level, config.log_format == "json")
    return run_process(run(config))


if __name__ == "__main__":
    sys.exit(main())
