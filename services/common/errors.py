"""The error tree: what can go wrong at a boundary, in the words of the person who has to act.

Adapters translate library errors into these (`raise Unavailable(...) from error`), so `grpc`, etcd, Kubernetes and
netlink exceptions never cross a package. `services.common.grpc_errors` maps the tree to gRPC status codes and back.
"""

from __future__ import annotations


class CiliateError(Exception):
    """Base of the tree. `str(error)` is one message that names the field or the thing, and the fix."""


class Invalid(CiliateError):
    """The input is wrong; the same call can never succeed."""


class NotFound(CiliateError):
    """What was named does not exist."""


class Conflict(CiliateError):
    """It exists already, or somebody else changed it first."""


class Unavailable(CiliateError):
    """Something that is needed is away; the same call may succeed later."""


class Exhausted(CiliateError):
    """A bound was reached: numbers, memory, queue."""


class Denied(CiliateError):
    """The caller may not do this."""


class Internal(CiliateError):
    """An invariant of ours does not hold."""
