"""What is fuzzed: text in, objects read, policies compiled by an engine that others rely on.

Whatever comes in, there is an answer of a known kind, in bounded time, and what the engine holds for others is the same
before, and after the document is gone again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from services.agent.calc.engine import Engine
from services.agent.calc.http import compile_rulesets
from services.agent.sources.decode import decode
from services.agent.sources.fields import FieldError
from services.agent.sources.manifests import ManifestError, parse
from services.model.objects import Deleted, KubeObject, ObjectKey, PolicyObject, Synced, Upserted
from tests.property.policies import cluster

SECONDS = 10.0
"""A single document may take this long on a busy machine; most take milliseconds."""
GOOD = {
    "spec": {
        "endpointSelector": {"matchLabels": {"app": "a"}},
        "ingress": [{"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}],
    },
}


class Target:
    """One engine with a small cluster and a policy that must stay as it is."""

    def __init__(self) -> None:
        self.engine = Engine("node1", sources=())
        self.counts: Counter[str] = Counter()
        for update in cluster():
            self.engine.apply(update)
        key = ObjectKey("CiliumNetworkPolicy", "red", "everybody-relies-on-this")
        self.engine.apply(Upserted(PolicyObject(key, GOOD)))
        self.engine.apply(Synced("x"))
        self.engine.flush()
        self._good, self._before = key, self._state()

    def text(self, text: str) -> None:
        """A manifest file."""
        began = time.process_time()
        try:
            objects = parse(text, "fuzz.yaml")
        except ManifestError:
            self.counts["refused as a manifest"] += 1
            objects = {}
        self._feed(objects.values(), began)

    def document(self, document: Any) -> None:
        """A document as the Kubernetes API serves it."""
        began = time.process_time()
        try:
            thing = decode(document)
        except FieldError:
            self.counts["refused as an object"] += 1
            thing = None
        self._feed([thing] if thing else [], began)

    def _feed(self, objects: Iterable[KubeObject], began: float) -> None:
        self.counts["documents"] += 1
        keys = []
        for thing in objects:
            if isinstance(thing, PolicyObject) and thing.key != self._good:
                keys.append(thing.key)
                self.engine.apply(Upserted(thing))
        self.engine.flush()
        compile_rulesets(self.engine.rulesets())
        for status in self.engine.policy_status():
            if status.key in keys:
                self.counts["policies accepted" if status.in_force else "policies refused"] += 1
                assert status.in_force != bool(status.problems)
                assert all(len(str(problem)) < 4000 for problem in status.problems)
        if keys:
            for key in keys:
                self.engine.apply(Deleted(key))
            self.engine.flush()
            assert self._state() == self._before, f"the engine remembers {keys}"
        took = time.process_time() - began
        assert took < SECONDS, f"took {took:.1f} s"

    def _state(self) -> dict[str, Any]:
        # The endpoints carry the policy revision, which only counts up.
        found = self.engine.desired()
        return {name: dict(table) for name, table in found.items() if name != "endpoints"}
