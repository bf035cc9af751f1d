"""`ciliate-cni`: called by the container runtime with its request in the environment and on standard input."""

from __future__ import annotations

import os
import sys

from services.cni.plugin import run


def main() -> int:
    """Answer one CNI call; returns the exit code."""
    status, answer = run(os.environ, sys.stdin.read)
    if answer:
        sys.stdout.write(answer + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
