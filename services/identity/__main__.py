"""`ciliate-identity`: reads its configuration and runs until told to stop."""

from __future__ import annotations

import sys

from services.common import runner
from services.identity import app
from services.identity.config import Config


def main() -> int:
    """See `runner.main`."""
    return runner.main("ciliate-identity", Config, app.run, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
