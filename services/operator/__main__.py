"""`ciliate-operator`: reads its configuration and runs until told to stop."""

from __future__ import annotations

import sys

from services.common import runner
from services.operator import app
from services.operator.config import Config


def main() -> int:
    """See `runner.main`."""
    return runner.main("ciliate-operator", Config, app.run, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
