"""`ciliate-agent check-config [NAME]`: is the text on standard input a configuration file? Prints every problem.

What a file may leave to flags and environment (the node's name and addresses, certificates) is assumed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import yaml

from services.agent.config import Config
from services.common.config import check
from services.common.errors import CiliateError

ASSUMED = {
    "node_name": "node",
    "node_address": ["192.0.2.1", "2001:db8::1"],
    "pod_cidr4": "198.51.100.0/24",
    "identity_target": "identity:4250",
}


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 where it is not."""
    origin = arguments[0] if arguments else "standard input"
    text = sys.stdin.read()
    try:
        document = yaml.safe_load(text)
        names = document if isinstance(document, dict) else {}
        folder = {"objects_dir": "/objects"} if names.get("source") == "folder" else {}
        tls = {} if names.get("insecure") is True else {"tls_ca": "ca", "tls_cert": "cert", "tls_key": "key"}
        check(Config, text, origin, {**ASSUMED, **folder, **tls})
    except yaml.YAMLError as error:
        print(f"configuration: {origin} is not YAML: {error}", file=sys.stderr)
        return 1
    except CiliateError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
