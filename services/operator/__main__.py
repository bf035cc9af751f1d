"""`ciliate-operator`: reads its configuration and runs until told to stop."""

from __future__ import annotations

import sys

from services.common import config as configuration
from services.common import log
from services.common.errors import CiliateError
from services.common.runner import run
from services.operator import app
from services.operator.config import Config

PROCESS = "ciliate-operator"


def main() -> int:
    """Exit code: 0 when told to stop, 1 with one line on standard error for anything that a person can fix."""
    try:
        config = configuration.load(Config, sys.argv[1:], process=PROCESS)
    except CiliateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    log.configure(PROCESS, config.log_level, config.log_format == "json")
    return run(app.run(config))


if __name__ == "__main__":
    sys.exit(main())
