"""Label cardinality: what a key costs, counted by leaving it out; and which keys policies ask for."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from services.cli.identity import labels_item, labels_text
from services.cli.label_report import key_of, report
from services.model.label_filter import LabelFilter
from services.model.labels import Label
from services.model.objects import ObjectKey, PolicyObject
from services.policy.label_keys import label_keys
from services.policy.read import read_policy

POD = "k8s:io.kubernetes.pod.namespace=default"


def test_a_key_costs_the_identities_that_it_alone_tells_apart() -> None:
    identities = [[POD, f"k8s:app={app}", f"k8s:job=run-{n}"] for app in ("a", "b") for n in range(5)]
    found = report([*identities, ["reserved:host"]], {"p": ["k8s:app"], "q": ["any:app", "k8s:gone"]})
    rows = {row.key: row for row in found.keys}
    assert found.total == 11
    assert (rows["k8s:job"].identities, rows["k8s:job"].values, rows["k8s:job"].without) == (10, 5, 3)
    assert (rows["k8s:app"].values, rows["k8s:app"].without, rows["k8s:app"].policies) == (2, 6, ("p", "q"))
    assert (rows["k8s:gone"].identities, rows["k8s:gone"].policies) == (0, ("q",))
    assert "reserved:host" not in rows
    assert found.unused == ("k8s:job", "k8s:io.kubernetes.pod.namespace")
    assert found.without_unused == 3
    assert next(iter(rows)) == "k8s:job", "what saves most comes first"


KEYS = st.sampled_from(["k8s:a", "k8s:b", "any:a", "container:a", "k8s:c.d/e"])
SETS = st.lists(
    st.dictionaries(KEYS, st.sampled_from(["", "1", "2"]), max_size=4).map(
        lambda labels: [f"{key}={value}" if value else key for key, value in labels.items()]
    ),
    max_size=12,
)


@given(SETS, st.dictionaries(st.sampled_from("pqr"), st.lists(KEYS, max_size=3), max_size=3))
def test_counts_are_those_of_leaving_keys_out(identities: list[list[str]], used: dict[str, list[str]]) -> None:
    found = report(identities, used)

    def left(gone: set[str]) -> int:
        return len({frozenset(label for label in labels if key_of(label) not in gone) for labels in identities})

    assert found.total == left(set())
    for row in found.keys:
        assert row.without == left({row.key})
        name = row.key.partition(":")[2]
        assert set(row.policies) == {policy for policy, keys in used.items() if {row.key, f"any:{name}"} & set(keys)}
        assert row.identities == sum(row.key in map(key_of, labels) for labels in {frozenset(i) for i in identities})
    assert found.without_unused == left({row.key for row in found.keys if not row.policies})
    asked = {key for keys in used.values() for key in keys}
    assert {row.key for row in found.keys} >= {key_of(label) for labels in identities for label in labels}
    for key in asked:
        assert any(row.key == key or row.key.partition(":")[2] == key.partition(":")[2] for row in found.keys)


def test_the_text_says_what_could_go_and_the_pattern_does_it() -> None:
    identities = [[POD, f"k8s:a.b/run={n}"] for n in range(4)]
    item = labels_item(report(identities, {"CiliumNetworkPolicy default/p": ["k8s:io.kubernetes.pod.namespace"]}))
    text = labels_text(json.loads(json.dumps(item)))
    assert "4 identities; without the 1 keys that no policy uses: 1" in text
    assert "no policy" in text.splitlines()[1]
    assert "CiliumNetworkPolicy default/p" in text
    pattern = text.partition("identity_label_patterns: '")[2].partition("'")[0]
    kept = LabelFilter([pattern])
    assert not kept.accepts(Label("k8s", "a.b/run", "3"))
    assert kept.accepts(Label("k8s", "a.b/running", "3"))


def test_labels_of_pods_cannot_steer_the_terminal() -> None:
    item = labels_item(report([["k8s:a\x1b[2J=1"]], {}), ["node\x1b2"])
    assert "\x1b" not in labels_text(item)


def test_keys_of_a_policy_are_those_of_subject_and_peers_with_what_is_added() -> None:
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "p"},
        "specs": [
            {
                "endpointSelector": {"matchLabels": {"k8s:app": "web"}},
                "ingress": [
                    {"fromEndpoints": [{"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]}]},
                    {"fromEntities": ["world"]},
                    {"fromCIDR": ["10.0.0.0/8"]},
                ],
            },
            {"nodeSelector": {"matchLabels": {"zone": "a"}}, "ingress": [{"fromEntities": ["cluster"]}]},
        ],
    }
    policy = read_policy(PolicyObject(ObjectKey(str(document["kind"]), "", "p"), document))
    keys = set(label_keys(policy))
    assert {"k8s:app", "any:tier", "k8s:io.kubernetes.pod.namespace", "k8s:io.cilium.k8s.policy.cluster"} <= keys
    assert not {"any:zone", "k8s:zone"} & keys
