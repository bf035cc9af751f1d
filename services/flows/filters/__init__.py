"""Filters of the Hubble API (its reference, section 3), evaluated on columns. One module per field or field pair.

`Filters(whitelist, blacklist).match(rows)`: any whitelist filter matches (or there is none) and no blacklist filter
does. Inside a filter every field that is set must match, and in a repeated field any element.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from services.common.pb.flow import flow_pb2
from services.flows.columns import Array, Columns, Kind
from services.flows.dictionary import Dictionaries
from services.flows.facets import FACETS, NO_FACET, event_types
from services.flows.filters import (
    absent,
    cel,
    cluster,
    drop_reason,
    event_type,
    fqdn,
    http,
    identity,
    ip,
    ip_version,
    label,
    node_name,
    pod,
    port,
    protocol,
    reply,
    service,
    tcp_flags,
    trace,
    traffic_direction,
    uuid,
    verdict,
    workload,
)
from services.flows.filters.base import Condition, FilterError, Rows, all_of

__all__ = ["FilterError", "Filters", "Rows"]

# Cheap number comparisons first: a condition is not evaluated once nothing is left.
_BUILDERS = (
    verdict.build,
    traffic_direction.build,
    port.build,
    protocol.build,
    identity.build,
    pod.build,
    ip.build,
    label.build,
    service.build,
    workload.build,
    cluster.build,
    node_name.build,
    drop_reason.build,
    event_type.build,
    reply.build,
    tcp_flags.build,
    ip_version.build,
    fqdn.build,
    http.build,
    uuid.build,
    trace.build,
    absent.build,
    cel.build,
)


def build(given: flow_pb2.FlowFilter) -> Condition:
    """One filter; raises `FilterError` where it cannot be built. An empty one matches everything."""
    return all_of([condition for builder in _BUILDERS for condition in builder(given)])


class Filters:
    """An allow list and a deny list, built once per request."""

    def __init__(
        self, whitelist: Iterable[flow_pb2.FlowFilter] = (), blacklist: Iterable[flow_pb2.FlowFilter] = ()
    ) -> None:
        whitelist, blacklist = list(whitelist), list(blacklist)
        self._allow = [build(each) for each in whitelist]
        self._deny = [build(each) for each in blacklist]
        self.costly = any(each.experimental.cel_expression for each in (*whitelist, *blacklist))
        """Rows are looked at one by one: give few at a time, and let others have a turn in between."""
        self._by_event_type = any(each.event_type for each in (*whitelist, *blacklist))

    def match(self, columns: Columns, dictionaries: Dictionaries) -> tuple[Array, Array]:
        """(mask of the rows that pass, facet to show each as). Lost-event rows pass nothing here."""
        flows = columns["kind"] != Kind.LOST
        shown = np.zeros(len(flows), np.uint8)
        passed = self._match(Rows(columns, dictionaries, FACETS[0])) & flows
        if self._by_event_type:
            second = self._match(Rows(columns, dictionaries, FACETS[1])) & flows & ~passed
            second &= event_types(columns, FACETS[1])[0] != NO_FACET
            shown[second] = FACETS[1]
            passed |= second
        return passed, shown

    def _match(self, rows: Rows) -> Array:
        mask = rows.none() if self._allow else rows.all()
        for condition in self._allow:
            mask |= condition(rows)
        for condition in self._deny:
            if not mask.any():
                break
            mask &= ~condition(rows)
        return mask
