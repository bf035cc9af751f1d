"""Which policy revision is really in force: computed by the engine, and written by the sink without a rest.

Both are one but for moments, unless the kernel refuses entries (a full map) or rules conflict.
"""

from __future__ import annotations

from services.agent.abi.policy import PolicyKey
from services.agent.calc.answers import EndpointPolicy
from services.agent.calc.maps import MapName, u32
from services.agent.datapath.sink import DatapathSink

_SHARED: tuple[MapName, ...] = ("ipcache", "refined")
"""Maps whose missing entries may concern any endpoint."""


class Realised:
    """`revision`: up to which the kernel's maps were once whole."""

    def __init__(self, sink: DatapathSink) -> None:
        self._sink = sink
        self.revision = 0

    def written(self, revision: int) -> None:
        """Changes up to a revision were handed to the sink, or it tried again."""
        if not self._sink.pending:
            self.revision = revision

    def of(self, policy: EndpointPolicy) -> tuple[int, int]:
        """(the revision that an endpoint obeys, a newer one that waits; 0 = none does)."""
        if self._refused(policy):
            return min(policy.revision, self.revision), policy.revision
        return policy.revision, policy.conflicting_since

    def _refused(self, policy: EndpointPolicy) -> bool:
        if not self._sink.pending:
            return False
        reconcilers = self._sink.reconcilers
        if any(reconcilers[name].pending for name in _SHARED):
            return True
        if u32(policy.endpoint_id) in reconcilers["endpoints"].pending:
            return True
        return any(PolicyKey.unpack(key).policy_id == policy.policy_id for key in reconcilers["policy"].pending)
