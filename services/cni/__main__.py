"""`ciliate-cni`: called by the container runtime with its request in the environment and on standard input."""

from __future__ import annotations

import sys

from services.cni.plugin import main

if __name__ == "__main__":
    sys.exit(main())
