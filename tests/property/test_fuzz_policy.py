"""Whatever stands in a policy document: an answer of a known kind, soon, in bounded memory, and the engine unharmed."""

from __future__ import annotations

import random
import resource
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent.sources.manifests import ManifestError, parse
from services.model.objects import ObjectKey, PolicyObject
from services.policy.problems import PolicyInvalid
from services.policy.read import KINDS, read_policy
from tests.conftest import Tally
from tests.fuzz.documents import SEEDS, as_text, mutated
from tests.fuzz.target import Target

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5)
)
SPECS = st.dictionaries(
    st.sampled_from(
        [
            "endpointSelector",
            "nodeSelector",
            "podSelector",
            "ingress",
            "egress",
            "ingressDeny",
            "egressDeny",
            "policyTypes",
            "enableDefaultDeny",
            "labels",
            "description",
            "log",
        ]
    ),
    ANYTHING,
)
JUNK = st.text(alphabet=":-[]{}&*!|>'\"%@` \n\tab0", max_size=8)


@pytest.fixture(scope="module")
def target() -> Target:
    return Target()


@settings(max_examples=250, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)), spec=ANYTHING | SPECS, more=st.dictionaries(st.text(), ANYTHING, max_size=2)
)
def test_arbitrary_documents(target: Target, kind: str, spec: Any, more: dict[str, Any]) -> None:
    target.document({**more, "apiVersion": KINDS[kind][0], "kind": kind, "metadata": {"name": "f"}, "spec": spec})


@settings(max_examples=600, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_documents_that_are_almost_right(target: Target, seed: int) -> None:
    target.document(mutated(random.Random(seed).randrange))


@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 2**40), cut=st.integers(0, 4000), junk=st.text(alphabet=":-[]{}&*!|>'\"%@` \n\tab0", max_size=8)
)
def test_text_that_is_almost_right(target: Target, seed: int, cut: int, junk: str) -> None:
    text = as_text(mutated(random.Random(seed).randrange))
    target.text(text[:cut] + junk + text[cut:])


@settings(max_examples=250, deadline=None)
@given(text=st.text(max_size=200))
def test_arbitrary_text(target: Target, text: str) -> None:
    target.text(text)


def test_counts(target: Target, tally: Tally) -> None:
    """Both ways were taken: a fuzz whose documents are all refused at the door tests nothing."""
    assert target.counts["policies accepted"] > 20
    assert target.counts["policies refused"] > 100
    for what, number in target.counts.items():
        tally(f"fuzz: {what}", number)


def test_the_seeds_are_right() -> None:
    for seed in SEEDS:
        key = ObjectKey(seed["kind"], "red", "fuzzed")
        try:
            read_policy(PolicyObject(key, seed))
        except PolicyInvalid as invalid:
            pytest.fail(f"{seed['kind']}: {invalid}")


def cnp(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "big", "namespace": "red"},
        "spec": {"endpointSelector": {}, **spec},
    }


def knp(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "big", "namespace": "red"},
        "spec": {"podSelector": {}, **spec},
    }


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": [value]}
    return value


HUGE = {
    "100k ports in one list": lambda: cnp(
        ingress=[{"toPorts": [{"ports": [{"port": str(1 + n % 65535), "protocol": "TCP"} for n in range(100_000)]}]}]
    ),
    "100k ports in elements of 40": lambda: cnp(
        ingress=[
            {"toPorts": [{"ports": [{"port": str(1 + (40 * i + n) % 65535)} for n in range(40)]}]} for i in range(2_500)
        ]
    ),
    "90k ports of a NetworkPolicy": lambda: knp(ingress=[{"ports": [{"port": 1 + n % 65535} for n in range(90_000)]}]),
    "every second port of a NetworkPolicy": lambda: knp(ingress=[{"ports": [{"port": n} for n in range(1, 65535, 2)]}]),
    "50k labels in a selector": lambda: cnp(
        ingress=[{"fromEndpoints": [{"matchLabels": {f"k{n}": "v" for n in range(50_000)}}]}]
    ),
    "50k values in an expression": lambda: cnp(
        ingress=[
            {
                "fromEndpoints": [
                    {"matchExpressions": [{"key": "a", "operator": "In", "values": [f"v{n}" for n in range(50_000)]}]}
                ]
            }
        ]
    ),
    "20k selectors": lambda: cnp(ingress=[{"fromEndpoints": [{"matchLabels": {"a": f"v{n}"}} for n in range(20_000)]}]),
    "10k prefixes": lambda: cnp(egress=[{"toCIDR": [f"10.{n >> 8}.{n & 255}.0/24" for n in range(10_000)]}]),
    "nested 5000 deep": lambda: cnp(ingress=[nested(5_000)]),
}


def peak_bytes() -> int:
    """The most memory that this process ever had in RAM."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("what", HUGE)
def test_huge_documents_are_bounded(target: Target, what: str) -> None:
    document = HUGE[what]()
    before = peak_bytes()
    target.document(document)
    assert peak_bytes() - before < 256 << 20


ANCHORS = {
    "a list in itself": "&a [*a]",
    "a mapping in itself": "&a {x: *a}",
    "aliases that double": "\n".join(
        ["x0: &x0 [a, a]", *(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}, *x{n - 1}]" for n in range(1, 40))]
    ),
    "merge keys that double": "\n".join(
        ["x0: &x0 {k0: 0}", *(f"x{n}: &x{n} {{<<: [*x{n - 1}, *x{n - 1}], k{n}: {n}}}" for n in range(1, 16))]
    ),
}


@pytest.mark.parametrize("where", ["spec", "labels"])
@pytest.mark.parametrize("what", ANCHORS)
def test_anchors(target: Target, what: str, where: str) -> None:
    value = ANCHORS[what].replace("\n", "\n    ")
    inline = value if value.startswith("&") else "\n    " + value
    place = (
        f"spec: {inline}"
        if where == "spec"
        else f"spec:\n  endpointSelector:\n    matchLabels: {inline}\n  ingress: [{{}}]"
    )
    head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: anchors}\n"
    target.text(head + place)


def test_a_deep_text_is_refused_soon() -> None:
    began = time.process_time()
    with pytest.raises(ManifestError):
        parse("[" * 100_000, "deep.yaml")
    assert time.process_time() - began < 5
