"""Entry point of `ciliate`: errors of the tree become one message and exit status 1."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from services.cli.app import app
from services.cli.arguments import mark_negations
from services.common.errors import CiliateError


def main() -> None:
    """Run the command line."""
    if sys.stdout is None:
        sys.exit("ciliate: standard output is closed")
    try:
        app(args=mark_negations(sys.argv[1:]), prog_name="ciliate")
    except CiliateError as error:
        _fail(str(error))
    except UnicodeEncodeError as error:
        # Bytes of an argument that are no text come as surrogates; they fail where they are to leave as text.
        _fail(f"{error.object[:80]!r} is not UTF-8: write arguments and CILIATE_ variables in UTF-8")
    except OSError as error:
        _fail(f"{error.filename or 'output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    """End with a message; what could not be written (a full disk, a reader that left) is not tried again."""
    print(f"ciliate: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


if __name__ == "__main__":
    main()
