"""Ciliate: identity-aware networking, security and observability for Kubernetes."""

import os

__version__ = "0.1.0"

# Several processes start programs while gRPC's threads run. gRPC's own fork handlers are meant for children that go on
# using it; in a child that is about to become another program they can abort it. Read when gRPC is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
