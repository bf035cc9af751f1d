"""Filter flags become the filters that the field's tool would send."""

from __future__ import annotations

import pytest
from google.protobuf.json_format import MessageToDict

from services.cli.arguments import mark_negations
from services.common.errors import Invalid
from services.common.pb.flow import flow_pb2
from services.flows.flags import FLAGS, NOT, build


def allow(**values: list[str]) -> list[dict[str, object]]:
    found = build({name.replace("_", "-"): texts for name, texts in values.items()})
    return [MessageToDict(each, preserving_proto_field_name=True) for each in found.allow]


def test_every_flag_names_a_field_that_is_there() -> None:
    fields = set(flow_pb2.FlowFilter.DESCRIPTOR.fields_by_name)
    for flag in FLAGS:
        if flag.field in ("namespace", "all_namespaces", "experimental.cel_expression"):
            continue
        wanted = {flag.field} if flag.side.name == "FLOW" else {f"source_{flag.field}", f"destination_{flag.field}"}
        assert wanted <= fields, flag.name


def test_nothing_asked_is_no_filter() -> None:
    assert build({}).allow == ()
    assert build({"pod": []}).deny == ()


def test_a_two_sided_flag_is_either_end() -> None:
    assert allow(pod=["default/web"]) == [{"source_pod": ["default/web"]}, {"destination_pod": ["default/web"]}]


def test_repeating_is_or_and_different_flags_are_and() -> None:
    assert allow(from_pod=["a", "b"], to_port=["80"], verdict=["dropped"]) == [
        {"source_pod": ["a", "b"], "destination_port": ["80"], "verdict": ["DROPPED"]}
    ]


def test_one_side_together_with_a_two_sided_flag_holds_in_both_filters() -> None:
    assert allow(from_ip=["10.0.0.0/8"], label=["app=web"]) == [
        {"source_ip": ["10.0.0.0/8"], "source_label": ["app=web"]},
        {"source_ip": ["10.0.0.0/8"], "destination_label": ["app=web"]},
    ]


def test_a_namespace_prefixes_names_and_alone_means_every_pod() -> None:
    assert allow(namespace=["team"]) == [{"source_pod": ["team/"]}, {"destination_pod": ["team/"]}]
    assert allow(to_namespace=["team"], to_pod=["web", "other/x"]) == [{"destination_pod": ["team/web", "other/x"]}]


def test_not_turns_the_next_flag_around() -> None:
    words = mark_negations(["observe", "--not", "--verdict", "FORWARDED", "--pod", "web", "--not", "--port=53"])
    assert words == ["observe", "--verdict", f"{NOT}FORWARDED", "--pod", "web", "--port", f"{NOT}53"]
    found = build({"verdict": [f"{NOT}FORWARDED"], "port": [f"{NOT}53"]})
    assert found.allow == ()
    assert [MessageToDict(each)["verdict"] for each in found.deny] == [["FORWARDED"], ["FORWARDED"]]


def test_not_stops_at_the_double_dash_and_needs_a_flag() -> None:
    assert mark_negations(["sandbox", "exec", "p", "--", "find", "--not", "x"])[-2:] == ["--not", "x"]
    with pytest.raises(Invalid, match="--not"):
        mark_negations(["observe", "--not"])


@pytest.mark.parametrize(
    ("flag", "text", "words"),
    [
        ("port", "eighty", "no port"),
        ("port", "65536", "no port"),
        ("identity", "martian", "no identity"),
        ("verdict", "MAYBE", "use one of"),
        ("type", "rumour", "no event type"),
        ("type", "trace:to-moon", "no sub-type"),
        ("tcp-flags", "syn,foo", "'FOO' is no TCP flag"),
        ("http-header", "x", "key:value"),
    ],
)
def test_wrong_values_name_the_flag_and_the_fix(flag: str, text: str, words: str) -> None:
    with pytest.raises(Invalid, match=f"--{flag}: .*{words}"):
        build({flag: [text]})


def test_values_are_read_in_the_words_people_use() -> None:
    assert allow(identity=["world"])[0] == {"source_identity": [2]}
    assert allow(to_identity=["reserved:remote-node", "4711"]) == [{"destination_identity": [6, 4711]}]
    assert allow(type=["trace:to-endpoint", "drop"]) == [
        {"event_type": [{"type": 4, "match_sub_type": True}, {"type": 1}]}
    ]
    assert allow(workload=["Deployment/web"])[0] == {"source_workload": [{"kind": "Deployment", "name": "web"}]}
    assert allow(tcp_flags=["syn,ack"]) == [{"tcp_flags": [{"SYN": True, "ACK": True}]}]
