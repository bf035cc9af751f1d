"""Entry point of `ciliate`: errors of the tree become one message and exit status 1."""

from __future__ import annotations

import sys

from services.cli.app import app
from services.cli.arguments import mark_negations
from services.common.errors import CiliateError


def main() -> None:
    """Run the command line."""
    try:
        app(args=mark_negations(sys.argv[1:]), prog_name="ciliate")
    except CiliateError as error:
        print(f"ciliate: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
