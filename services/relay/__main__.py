"""`ciliate-relay`: reads its configuration and serves until told to stop."""

from __future__ import annotations

import sys

from services.common import runner
from services.relay import app
from services.relay.config import Config


def main() -> int:
    """See `runner.main`."""
    return runner.main("ciliate-relay", Config, app.run, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
